"""`fpsim run`: a training script, unchanged, under emulation."""

from __future__ import annotations

import atexit
import os
import runpy
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from fpsim.backend.threads import serves_kernels
from fpsim.cli.losses import losses_kept
from fpsim.cli.parameters import POLICY_ACCUMULATOR, POLICY_FORMAT, POLICY_ROUNDING, REPORT, InputError
from fpsim.cli.processes import no_unseen_processes
from fpsim.cli.threads import emulated_threads
from fpsim.report.plain import plain


class ScriptCommand(click.Command):
    """Reads its own options before the script's name and directly after it; all further words are the script's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        command_words, ctx.meta["script_words"] = self._split(args)
        return super().parse_args(ctx, command_words)

    def _split(self, words: list[str]) -> tuple[list[str], list[str]]:
        options = [parameter for parameter in self.params if isinstance(parameter, click.Option)]
        takes_value = {name: not option.is_flag for option in options for name in option.opts}
        takes_value |= {"-h": False, "--help": False}
        script_seen = False
        position = 0
        while position < len(words):
            word = words[position]
            name, equals, _ = word.partition("=")
            if word == "--":
                rest = words[position + 1 :]
                command_words = words[:position]
                return (command_words, rest) if script_seen else (command_words + rest[:1], rest[1:])
            if name in takes_value:
                position += 2 if takes_value[name] and not equals else 1
            elif script_seen:
                break
            else:
                script_seen = not word.startswith("-")
                position += 1
        return words[:position], words[position:]


@click.command(cls=ScriptCommand, options_metavar="SCRIPT [OPTIONS] [SCRIPT ARGUMENTS]...", add_help_option=True)
@click.argument("script", metavar="")
@click.option("--fmt", type=POLICY_FORMAT, required=True, help="Format of every float32 tensor; or JSON, by role.")
@click.option(
    "--accumulate", type=POLICY_ACCUMULATOR, default="fp32", show_default=True, help="How sums accumulate; or JSON, by role."
)
@click.option(
    "--rounding", type=POLICY_ROUNDING, default="nearest-even", show_default=True, help="Rounding mode; or JSON, by role."
)
@click.option("--seed", type=int, help="Seed of the draws; stochastic rounding needs one.")
@click.option("--report", "page", type=REPORT, help="Where the report goes as a page (.html) or as data (.json).")
@click.option("--losses", "keeps_losses", is_flag=True, hidden=True, help="Keep what backward passes start from.")
@click.pass_context
def run(
    ctx: click.Context, script: str, fmt: Any, accumulate: Any, rounding: Any, seed: int | None, page: Path | None,
    keeps_losses: bool,
) -> None:  # fmt: skip
    """Run a script, unchanged, under emulation.

    The first word after SCRIPT that is not one of the options below begins the script's own arguments. Standard
    output is the script's alone: the report of what happened to the numbers goes to standard error at the end, and with
    --report to a file, also where the script fails or is interrupted; or one line says that nothing was emulated. The
    exit code is the script's. Threads of the script are emulated as well. Processes that it starts would not be:
    starting one is an error, but for the workers of a DataLoader and programs other than Python.
    """
    if not os.path.isfile(script):
        raise InputError(f"there is no script {script!r}")
    import torch._dynamo  # noqa: F401 - optimizers import it, and what it registers for the end is none of the script's

    from fpsim.emulation.dispatch.context import Emulation
    from fpsim.emulation.dispatch.hooks import install_optimizer_hooks
    from fpsim.emulation.machine.policy import make_policy

    try:
        policy = make_policy(fmt, accumulate, rounding, seed)
        emulation = Emulation(policy, policy.resolve())
    except (ValueError, NotImplementedError) as error:
        raise InputError(str(error)) from None
    if page is not None and not policy.is_identity:
        emulation.observe(("range", "histograms", "events", "coverage"))
    install_optimizer_hooks()
    ending, seen = ExitStack(), _Seen()
    ending.callback(_report, emulation, page, seen)
    if keeps_losses:
        seen.losses = ending.enter_context(losses_kept())
    for context in (
        _as_main(script, ctx.meta["script_words"]),
        no_unseen_processes(),
        emulated_threads(emulation),
        emulation,
    ):
        ending.enter_context(context)
    atexit.register(ending.close)  # after what the script registers there
    before = _what_may_run_later()
    try:
        runpy.run_path(script, run_name="__main__")
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - shown, and told by the exit code
        error.__traceback__ = _from_script(error.__traceback__, script)
        seen.note(error, script)
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
    finally:
        sys.stdout.flush()
        if _what_may_run_later() <= before:
            atexit.unregister(ending.close)
            ending.close()


def _what_may_run_later() -> int:
    """How many threads the interpreter waits for before it ends, and how many functions it then calls."""
    waited_for = sum(not thread.daemon and not serves_kernels(thread) for thread in threading.enumerate())
    return waited_for + atexit._ncallbacks()


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


@contextmanager
def _as_main(script: str, words: list[str]) -> Iterator[None]:
    """`sys.argv` and the first entry of `sys.path` as `python script words...` sets them."""
    argv, path = sys.argv, list(sys.path)
    sys.argv = [script, *words]
    if not sys.flags.safe_path:
        sys.path[:1] = [os.path.dirname(os.path.realpath(script))]
    try:
        yield
    finally:
        sys.argv, sys.path[:] = argv, path


def _from_script(traceback: TracebackType | None, script: str) -> TracebackType | None:
    """The part of a traceback that begins in the script, as running it with python would show it."""
    while traceback is not None and traceback.tb_frame.f_code.co_filename != script:
        traceback = traceback.tb_next
    return traceback
