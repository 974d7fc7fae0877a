"""The command line of the recorder alone, for machines that have torch and no fpsim."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Callable
from typing import Any

import torch

from .bundle import TooLarge
from .recording import SECTIONS, record, recording


def find_model(text: str) -> tuple[Callable[[], Any], torch.nn.Module | None]:
    """What `script.py:name` means: a function to call without arguments, and the model that it is, if it is one.

    A module is called with the script's `inputs`, a tensor or a tuple. Raises ValueError for anything else.
    """
    script, colon, name = text.rpartition(":")
    if not colon or not os.path.isfile(script):
        raise ValueError(f"--model {text!r}: write script.py:name, and there must be such a script")
    sys.path.insert(0, os.path.dirname(os.path.realpath(script)))
    namespace = runpy.run_path(script, run_name="__recorded__")
    entry = namespace.get(name)
    if isinstance(entry, torch.nn.Module):
        if "inputs" not in namespace:
            raise ValueError(f"--model {text!r}: the script must define `inputs`, what the model is called with")
        inputs = namespace["inputs"]
        return lambda: entry(*(inputs if isinstance(inputs, tuple) else (inputs,))), entry
    if not callable(entry):
        raise ValueError(f"--model {text!r}: the script has no module or function {name!r}")
    return entry, None


def record_model(text: str, path: str, device: Any = None) -> Any:
    """Record what `script.py:name` computes; the bundle."""
    call, model = find_model(text)
    with recording(path, model, device) as bundle:
        call()
    return bundle


def main(arguments: list[str] | None = None) -> int:
    """Record as the arguments say; the exit code."""
    parser = argparse.ArgumentParser(prog="recorder", description="Record what this machine computes, for `fpsim crosscheck`.")
    parser.add_argument("-o", "--output", required=True, help="the bundle to write")
    parser.add_argument("--device", help="cpu, cuda ...; left out, a GPU if there is one")
    parser.add_argument("--section", action="append", choices=list(SECTIONS), help="only this section; may be repeated")
    parser.add_argument("--model", help="script.py:name, a module (called with the script's `inputs`) or a function")
    options = parser.parse_args(arguments)

    def show(done: int, total: int, name: str) -> None:
        print(f"[{done}/{total}] {name or 'done'}", file=sys.stderr, flush=True)

    try:
        if options.model:
            bundle = record_model(options.model, options.output, options.device)
        else:
            bundle = record(options.output, options.device, options.section, show)
    except (ValueError, TooLarge) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {options.output} holds what was recorded", file=sys.stderr)
        return 130
    print(summary(bundle, options.output))
    return 0


def summary(bundle: Any, path: str) -> str:
    """One line on what a file holds."""
    skipped = sum("skipped" in record for record in bundle.records)
    text = f"{path}: {len(bundle.records) - skipped} records, {os.path.getsize(path) / 2**20:.1f} MB"
    text += f", {skipped} could not be made here" if skipped else ""
    return text + (f"; stopped {bundle.stopped}" if bundle.stopped else "")
