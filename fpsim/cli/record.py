"""`fpsim record`: what this machine computes, as bits in one file."""

from __future__ import annotations

import click

from fpsim.cli.parameters import InputError
from fpsim.report.console import progress
from fpsim.report.plain import plain


@click.command()
@click.option("-o", "--output", type=click.Path(dir_okay=False), help="The bundle to write.")
@click.option("--device", help="cpu, cuda ...; left out, a GPU if there is one.")
@click.option("--section", "sections", multiple=True, help="Only this section of the probe suite; may be repeated.")
@click.option(
    "--model", help="script.py:name, a module (called with the script's `inputs`) or a function, instead of the suite."
)
@click.option(
    "--write-recorder", type=click.Path(dir_okay=False), help="Write the recorder alone, as a file that needs only torch."
)
def record(
    output: str | None, device: str | None, sections: tuple[str, ...], model: str | None, write_recorder: str | None
) -> None:
    """Record what this machine computes, for `fpsim crosscheck` on any other.

    Runs a suite of probes and stores operands and results as raw bits with what is known of the machine: processor, GPU,
    driver, library versions, flags. Ctrl-C keeps the sections that are done. With --write-recorder nothing is recorded: the
    file written runs as `python recorder.pyz -o bundle.npz` on a machine that has torch and no fpsim.
    """
    if write_recorder is not None:
        from fpsim.recorder.packing import write_recorder as write

        write(write_recorder)
        click.echo(f"{write_recorder}: run it as `python {write_recorder} -o bundle.npz` on the other machine")
    if output is None:
        if write_recorder is None:
            raise InputError("record needs -o, the bundle to write, or --write-recorder")
        return
    from fpsim.recorder.bundle import TooLarge
    from fpsim.recorder.command import record_model, summary
    from fpsim.recorder.recording import record as run_suite

    try:
        with progress() as bar:
            task = bar.add_task("recording", total=None)

            def show(done: int, total: int, name: str) -> None:
                bar.update(task, completed=done, total=total, description=name or "done")

            if model is not None:
                bundle = record_model(model, output, device)
            else:
                bundle = run_suite(output, device, sections or None, show)
    except (ValueError, TooLarge) as error:
        raise InputError(str(error)) from None
    except KeyboardInterrupt:
        click.echo(f"interrupted; {output} holds what was recorded", err=True)
        raise SystemExit(130) from None
    click.echo(plain(summary(bundle, output)))
