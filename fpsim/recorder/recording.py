"""Recording as a whole: the suite, or whatever a block of code does with torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from .bundle import MAX_BYTES, Bundle
from .calls import CallRecorder
from .environment import environment
from .instructions import instructions
from .masks import masks
from .suite import SECTIONS as CALLS, Probe

SECTIONS: dict[str, Callable[[Probe], None]] = {**CALLS, "masks": masks, "instructions": instructions}

#: Called before each section with how many are done, how many there are, and its name; at the end with the name "".
Progress = Callable[[int, int, str], None]


def record(
    path: str | os.PathLike[str],
    device: Any = None,
    sections: Iterable[str] | None = None,
    progress: Progress = lambda done, total, name: None,
) -> Bundle:
    """Run the probe suite on a device and save what it gives as a bundle; the bundle.

    path      of the file, at most 16 MB; an interruption (Ctrl-C) saves the sections that are done, then goes on
    device    "cpu", "cuda" or another device of torch; left out, a GPU if there is one
    sections  names of `SECTIONS`; left out, all

    Raises ValueError for an unknown section and for a device that torch does not have here.
    """
    chosen = list(SECTIONS) if sections is None else list(sections)
    for name in chosen:
        if name not in SECTIONS:
            raise ValueError(f"there is no section {name!r}; there are {', '.join(SECTIONS)}")
    target = find_device(device)
    bundle = Bundle(environment(target))
    recorder = CallRecorder(bundle, 2 * MAX_BYTES)  # before compression, which halves it
    try:
        for done, name in enumerate(chosen):
            progress(done, len(chosen), name)
            recorder.section = name
            SECTIONS[name](Probe(target, recorder))
    except KeyboardInterrupt:
        bundle.stopped = f"interrupted in the section {recorder.section}"
        raise
    finally:
        bundle.save(path)
    progress(len(chosen), len(chosen), "")
    return bundle


@contextmanager
def recording(
    path: str | os.PathLike[str], model: torch.nn.Module | None = None, device: Any = None, limit: int = MAX_BYTES
) -> Iterator[Bundle]:
    """What this thread computes with torch inside the block, saved as a bundle at its end, however it ends.

    model   whose modules' names say where an operation was made
    device  the one that is described in the bundle; left out, the model's
    limit   bytes of tensors after which nothing more is recorded, which the bundle says: what differs first comes first

    Operations on any device are recorded, also those of backward passes and optimizers. Raises what the block raises.
    """
    if device is None and model is not None:
        device = next((parameter.device for parameter in model.parameters()), None)
    bundle = Bundle(environment(find_device(device if device is not None else "cpu")))
    recorder = CallRecorder(bundle, limit)
    try:
        with recorder.following(model):
            yield bundle
    except BaseException as error:
        bundle.stopped = bundle.stopped or f"{type(error).__name__}: {error}"
        raise
    finally:
        bundle.save(path, 2 * limit)  # headers and the tensors of the last operation come on top


def find_device(device: Any) -> torch.device:
    """The device; left out, a GPU if there is one. Raises ValueError where torch has none of that kind here."""
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return chosen
