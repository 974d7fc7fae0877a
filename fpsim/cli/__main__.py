"""`python -m fpsim.cli` is `fpsim`."""

from fpsim.cli import main

main(prog_name="fpsim")
