"""`fpsim coverage`: what emulation does with every operation of torch."""

from __future__ import annotations

import click


@click.command()
@click.option("--markdown", is_flag=True, help="Print the page of the documentation instead.")
@click.option("--family", help="Only the operations of this family, e.g. unsupported.")
def coverage(markdown: bool, family: str | None) -> None:
    """List torch's operations with the family of their rule, or "unsupported"."""
    from fpsim.cli.parameters import InputError
    from fpsim.emulation.coverage import MEANINGS, coverage as rows_of, coverage_page

    if family is not None and family not in MEANINGS:
        raise InputError(f"--family: there is no family {family!r}; there are {', '.join(MEANINGS)}")
    if markdown:
        click.echo(coverage_page(), nl=False)
        return
    for name, its_family in rows_of().items():
        if family in (None, its_family):
            click.echo(f"{name:50} {its_family}")
