"""The runs of `compare` in processes of their own: what they are handed, and what they leave."""

from __future__ import annotations

import functools
import hashlib
import inspect
import io
import os
import pickle
import signal
import sys
from collections.abc import Callable
from multiprocessing import process, spawn
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from fpsim.backend import threads
from fpsim.emulation.apart import Task, run_all
from fpsim.emulation.compared_run import Steps, Work
from fpsim.emulation.observers.source import running_line
from fpsim.emulation.signals import end_with_parent
from fpsim.emulation.simulation import Simulation
from fpsim.report.runs import Run

Outcome = tuple[Run, list[torch.Tensor]]  # and what it predicted at each step


def run_apart(
    work: Work, named: list[tuple[str, dict[str, Any]]], processes: int, folder: str | os.PathLike[str] | None
) -> list[Outcome]:
    """The runs that left a report, in their order, `processes` at a time; those that the folder has are not made again.

    Raises TypeError for what cannot be handed to a process, RuntimeError with what one said that left nothing, and
    KeyboardInterrupt where nothing was done before it.
    """
    parts = {name: _pickle(name, value) for name, value in vars(work).items()}
    content, sources, version = _content(vars(work)), _sources(work), sys.modules["fpsim"].__version__.encode()
    with TemporaryDirectory() as scratch:
        kept = Path(scratch if folder is None else folder)
        kept.mkdir(parents=True, exist_ok=True)
        tasks = []
        for number, (name, settings) in enumerate(named):
            given = Path(scratch) / f"{number}.pickle"
            own = _pickle("policy", settings)
            key = hashlib.sha256(b"\0".join((version, _content(settings), content, *sources))).hexdigest()[:16]
            place = kept / f"{''.join(letter if letter.isalnum() else '-' for letter in name)}.{key}.json"
            given.write_bytes(pickle.dumps((_surroundings(processes), {**parts, "settings": own})))
            tasks.append(Task(name, place, (sys.executable, "-m", __name__, str(given), str(place))))
        runs, interrupted = run_all(tasks, processes)
        outcomes = [
            (found, torch.load(_predictions(task.place))) for task, found in zip(tasks, runs, strict=True) if found is not None
        ]
        for task, found in zip(tasks, runs, strict=True):
            if found is None and not interrupted:
                said = task.output.read_text(encoding="utf-8", errors="replace").strip()
                raise RuntimeError(f"the process of {task.name} left no report; it said: {said[-2000:]}")
    if not outcomes:
        raise KeyboardInterrupt
    return outcomes


def _pickle(name: str, value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception as error:  # whatever a reduction of the user's raises
        raise TypeError(
            f"the {name} cannot be handed to another process ({error}): define its functions and classes in a module, not "
            "inside others; or use processes=1 without a folder, or a script and `fpsim compare`"
        ) from error


class _Content(pickle.Pickler):
    """What tells values apart: as pickled, but tensors by their numbers, whose own form has addresses in it."""

    def reducer_override(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return NotImplemented
        plain = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
        numbers = plain.view(torch.uint8).numpy().tobytes()
        return tuple, ((type(value).__name__, str(value.dtype), tuple(value.shape), value.requires_grad, numbers),)


def _content(value: Any) -> bytes:
    buffer = io.BytesIO()
    _Content(buffer).dump(value)
    return buffer.getvalue()


def _sources(work: Work) -> list[bytes]:
    """The texts of the files that define what is run."""
    things = [work.loss, work.optimizer, *{type(module): None for module in work.model.modules()}]
    files = set()
    for thing in things:
        while isinstance(thing, functools.partial):
            thing = thing.func
        try:
            files.add(inspect.getsourcefile(inspect.unwrap(thing) if callable(thing) else type(thing)))
        except TypeError:  # built in, or of an interactive session
            continue
    return [Path(file).read_bytes() for file in sorted(filter(None, files)) if Path(file).exists()]


def _surroundings(jobs: int) -> dict[str, Any]:
    """What a process is to have of this one: its main module, paths and arguments, what bits of torch's depend on, and the
    line of the user's that reports name for what no other line of theirs is behind."""
    preparation = spawn.get_preparation_data("fpsim.compare")
    preparation.pop("authkey", None)
    line = running_line()
    return {
        "preparation": preparation,
        "torch": torch.get_num_threads(),
        "threads": max(1, torch.get_num_threads() // jobs),
        "dtype": torch.get_default_dtype(),
        "line": line and (line[0].co_filename, line[0].co_qualname, line[1]),
    }


def _predictions(place: Path) -> Path:
    return place.with_suffix(".predictions")


def _taking(line: tuple[str, str, int] | None) -> Callable[[Work, Simulation], Steps]:
    """A function that takes all steps, and seems to stand at that line."""
    take = lambda work, simulation: work.steps(simulation)  # noqa: E731 - all of it on its first line
    if line is not None:
        file, name, number = line
        take.__code__ = take.__code__.replace(co_filename=file, co_qualname=name, co_firstlineno=number)
    return take


def main(given: str, place: str) -> None:
    """Take the steps of one arithmetic; Ctrl-C leaves the report of those that were taken."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
    surroundings, parts = pickle.loads(Path(given).read_bytes())
    process.current_process()._inheriting = True  # type: ignore[attr-defined]  # a main module that compares again is refused
    try:
        spawn.prepare(surroundings["preparation"])
    finally:
        del process.current_process()._inheriting  # type: ignore[attr-defined]
    torch.set_num_threads(surroundings["torch"])
    threads.set_num_threads(surroundings["threads"])
    torch.set_default_dtype(surroundings["dtype"])
    values = {name: pickle.loads(part) for name, part in parts.items()}
    settings = values.pop("settings")
    work = Work(**values)
    steps = _taking(surroundings["line"])(work, work.simulation(settings))
    torch.save(steps.predictions, _predictions(Path(place)))
    unfinished = Path(place).with_suffix(".part")
    unfinished.write_text(steps.report().to_json(), encoding="utf-8")
    unfinished.replace(place)


if __name__ == "__main__":
    main(*sys.argv[1:])
