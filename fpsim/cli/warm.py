"""`fpsim warm`: kernels compiled ahead of their first call, by all cores."""

from __future__ import annotations

import os
import time

import click

from fpsim.cli.kernel_sets import EVERYTHING, SETS, do_each, work_of
from fpsim.cli.parameters import InputError
from fpsim.report.console import progress


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@click.command()
@click.argument("sets", nargs=-1, type=click.Choice([*SETS, EVERYTHING]), metavar="[SET]...")
@click.option("--processes", type=click.IntRange(1), help="How many compile at once [default: one for each core].")
def warm(sets: tuple[str, ...], processes: int | None) -> None:
    """Compile kernels ahead, so that the first step of a training, or the first call of a function, does not wait for it.

    SET is training-fp16 (what is warmed if none is named), training-bf16, training-primitive, arrays, functions, hardware,
    certificates or everything. What is compiled already is not compiled again. Kernels for shapes or settings that
    no set has are compiled when they are first called, as ever.
    """
    from fpsim.backend.numba import folders

    folder = folders.choose()
    if folder is None:
        raise InputError("there is no folder to keep compiled kernels in: set FPSIM_CACHE_DIR to a writable one")
    work = work_of(sets or ("training-fp16",))
    start = time.perf_counter()
    compiled = 0
    with progress() as bar:
        task = bar.add_task("compiling", total=len(work))
        for count in do_each(work, processes or _cores()):
            compiled += count
            bar.advance(task)
    click.echo(f"{compiled} functions compiled in {time.perf_counter() - start:.0f} s; kept in {folder}")
