"""`fpsim run`: a training script, unchanged, under emulation."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from fpsim.backend.threads import serves_kernels
from fpsim.cli.losses import losses_kept
from fpsim.cli.parameters import POLICY_ACCUMULATOR, POLICY_FORMAT, POLICY_ROUNDING, REPORT, InputError
from fpsim.cli.processes import no_unseen_processes
from fpsim.cli.program import Program, ScriptCommand
from fpsim.cli.threads import emulated_threads
from fpsim.report.plain import plain


@click.command(cls=ScriptCommand, options_metavar="SCRIPT [OPTIONS] [SCRIPT ARGUMENTS]...")
@click.argument("script", metavar="")
@click.option("--fmt", type=POLICY_FORMAT, required=True, help="Format of every float32 tensor; or a mapping.")
@click.option(
    "--accumulate", type=POLICY_ACCUMULATOR, default="fp32", show_default=True, help="How sums accumulate; or a mapping."
)
@click.option(
    "--rounding", type=POLICY_ROUNDING, default="nearest-even", show_default=True, help="Rounding mode; or a mapping."
)
@click.option(
    "--granularity", type=click.Choice(("kernel", "primitive")), default="kernel", show_default=True,
    help="What rounds once: an operation of torch, or every elementary one inside.",
)
@click.option(
    "--all-reduce", default="rank-order", show_default=True, help="Sums over ranks: rank-order, ring or tree; ring:fp32."
)
@click.option("--seed", type=int, help="Seed of the draws; stochastic rounding needs one.")
@click.option("--report", "page", type=REPORT, help="Where the report goes as a page (.html) or as data (.json).")
@click.option("--losses", "keeps_losses", is_flag=True, hidden=True, help="Keep what backward passes start from.")
@click.pass_context
def run(
    ctx: click.Context, script: str, fmt: Any, accumulate: Any, rounding: Any, granularity: str, all_reduce: str,
    seed: int | None, page: Path | None, keeps_losses: bool,
) -> None:  # fmt: skip
    """Run a script, or with -m MODULE a module, unchanged, under emulation.

    The first word after SCRIPT that is not one of the options below begins the script's own arguments. A mapping gives
    roles and modules values of their own: a JSON object, or the name of a .json or .toml file with one. Standard output
    is the script's alone: the report of what happened to the numbers goes to standard error at the end, and with --report
    to a file, also where the script fails, is interrupted or told to end (SIGTERM); or one line says that nothing was
    emulated. The exit code is the script's. Threads of the script are emulated as well. Processes that it starts would
    not be: starting one is an error, but for the workers of a DataLoader and programs other than Python. Ranks of a
    distributed run are processes of torchrun's: torchrun --no-python fpsim run SCRIPT ..., whose reports have the rank in
    their name.
    """
    program = Program(script, ctx.meta.get("is_module", False))
    import torch._dynamo  # noqa: F401 - optimizers import it, and what it registers for the end is none of the script's

    from fpsim.emulation.dispatch.context import Emulation
    from fpsim.emulation.dispatch.hooks import install_optimizer_hooks
    from fpsim.emulation.machine.policy import make_policy
    from fpsim.emulation.signals import at_sigterm, end_with_parent

    end_with_parent()
    try:
        policy = make_policy(fmt, accumulate, rounding, seed, granularity, all_reduce)
        emulation = Emulation(policy, policy.resolve())
    except (ValueError, NotImplementedError) as error:
        raise InputError(str(error)) from None
    if page is not None and not policy.is_identity:
        emulation.observe(("range", "histograms", "events", "coverage"))
    install_optimizer_hooks()
    ending, seen = ExitStack(), _Seen()
    ending.callback(_report, emulation, page and _of_rank(page), seen)
    if keeps_losses:
        seen.losses = ending.enter_context(losses_kept())
    for context in (
        program.as_main(ctx.meta["script_words"]),
        no_unseen_processes(),
        emulated_threads(emulation),
        emulation,
        at_sigterm(_raise_terminated()),
    ):
        ending.enter_context(context)
    atexit.register(ending.close)  # after what the script registers there
    before, is_ending = _what_may_run_later(), False
    try:
        program.run()
    except Terminated as error:
        is_ending = True
        seen.note(error, program.file)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - shown, and told by the exit code
        error.__traceback__ = program.own_part(error.__traceback__)
        seen.note(error, program.file)
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    finally:
        sys.stdout.flush()
        if is_ending or _what_may_run_later() <= before:
            atexit.unregister(ending.close)
            ending.close()
    if is_ending:
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGTERM)


class Terminated(BaseException):
    """The signal that schedulers and containers end processes by."""


def _raise_terminated() -> Callable[[int, Any], None]:
    """What treats the first SIGTERM: it raises, for the report's sake; the next one ends the process."""
    process = os.getpid()

    def treat(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != process:  # a child that was forked, which has no report
            os.kill(os.getpid(), number)
        raise Terminated("SIGTERM")

    return treat


def _what_may_run_later() -> int:
    """How many threads the interpreter waits for before it ends, and how many functions it then calls."""
    waited_for = sum(not thread.daemon and not serves_kernels(thread) for thread in threading.enumerate())
    return waited_for + atexit._ncallbacks()


def _of_rank(page: Path) -> Path:
    """Where the report of this rank goes, if several run."""
    rank = os.environ.get("RANK", "")
    several = os.environ.get("WORLD_SIZE", "1") != "1" and rank.isdigit()
    return page.with_suffix(f".rank{rank}{page.suffix}") if several else page


class _Seen:
    """What was seen of the script: what ended it, in one line, "" while nothing did; and its losses, if they are kept."""

    def __init__(self) -> None:
        self.ending = ""
        self.losses: list[float] = []

    def note(self, error: BaseException, script: str) -> None:
        """Remember an exception, and the last line of the script that it came through."""
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == script]
        place = f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
        self.ending = f"{type(error).__name__}: {error}".rstrip(": ") + place


def _report(emulation: Any, page: Path | None, seen: _Seen) -> None:
    """What happened to the numbers, or the sentence that nothing did, on standard error and in a file."""
    from fpsim.report.counts import Counts

    report = replace(emulation.report(), ending=seen.ending, losses=tuple(seen.losses))
    if page is not None:
        report.save(page)
        click.echo(f"fpsim run: the report is in {plain(str(page))}", err=True)
    if report.total != Counts():
        click.echo(f"\n{report}", err=True)
        return
    if emulation.policy.is_identity:
        reason = "fp32 in the library's own order is torch itself"
    elif emulation.policy.is_native:
        reason = "the script computed nothing in float16 or bfloat16 on the CPU, and under fmt=native the rest is torch's own"
    else:
        reason = "the script computed nothing in float32 on the CPU with torch"
    click.echo(f"fpsim run: nothing was emulated ({emulation.policy}): {reason}", err=True)
