"""The command line: `fpsim demo`, `fpsim run`, `fpsim compare`, `fpsim explain`, `fpsim formats`, `fpsim coverage`,
`fpsim record`, `fpsim crosscheck`, `fpsim cache`, `fpsim warm`.

Exit codes: 0, or what a script run under emulation exits with; 2 for input that makes no sense, after one sentence on
standard error; 130 after Ctrl-C.
"""

import click

from fpsim import __version__
from fpsim.cli.cache import cache
from fpsim.cli.compare import compare
from fpsim.cli.coverage import coverage
from fpsim.cli.crosscheck import crosscheck
from fpsim.cli.demo import demo
from fpsim.cli.explain import explain
from fpsim.cli.formats import formats
from fpsim.cli.record import record
from fpsim.cli.run import run
from fpsim.cli.warm import warm

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="fpsim")
def main() -> None:
    """Run floating-point programs in other arithmetic, bit for bit."""


for _command in (demo, run, compare, explain, formats, coverage, record, crosscheck, cache, warm):
    main.add_command(_command)
