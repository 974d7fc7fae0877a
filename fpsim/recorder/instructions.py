"""Single matrix instructions of an NVIDIA GPU, through a small CUDA source that nvcc compiles where it is.

A library's product chooses among instructions, tiles and split-K; this asks one instruction at a time.
"""

from __future__ import annotations

import ctypes
import pkgutil
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from .calls import CallRecorder
from .operands import Draw
from .suite import Probe

_ROWS, _COLUMNS, _TILES = 16, 8, 24
_FP8 = ("float8_e4m3fn", "float8_e5m2")
#: In the order of `mma.cu`: the PTX name, operand and output dtype, terms, and the least compute capability.
INSTRUCTIONS = (
    ("m16n8k16.f32.f16.f16.f32", "float16", "float32", 16, (8, 0)),
    ("m16n8k16.f16.f16.f16.f16", "float16", "float16", 16, (8, 0)),
    ("m16n8k16.f32.bf16.bf16.f32", "bfloat16", "float32", 16, (8, 0)),
    ("m16n8k8.f32.tf32.tf32.f32", "float32", "float32", 8, (8, 0)),
    ("m16n8k32.f32.e4m3.e4m3.f32", _FP8[0], "float32", 32, (8, 9)),
    ("m16n8k32.f32.e5m2.e5m2.f32", _FP8[1], "float32", 32, (8, 9)),
    ("m16n8k32.f16.e4m3.e4m3.f16", _FP8[0], "float16", 32, (8, 9)),
    ("m16n8k32.f16.e5m2.e5m2.f16", _FP8[1], "float16", 32, (8, 9)),
)


class _Unavailable(Exception):
    """Why no instruction can be called."""


def instructions(probe: Probe) -> None:
    """The section: tiles of each instruction, half of them with addends, over narrow, wide, cancelling and special operands."""
    recorder = probe.recorder
    with tempfile.TemporaryDirectory() as folder:
        try:
            library, has_half_fp8 = _compiled(probe.device, Path(folder))
        except _Unavailable as reason:
            note = {"kind": "instruction", "section": "instructions", "op": "mma.sync", "skipped": str(reason)}
            recorder.bundle.records.append(note)
            return
        capability = torch.cuda.get_device_capability(probe.device)
        for number, (name, operand, output, terms, least) in enumerate(INSTRUCTIONS):
            record = {"kind": "instruction", "section": "instructions", "op": f"mma.sync {name}"}
            if capability < least or (operand in _FP8 and output == "float16" and not has_half_fp8):
                recorder.bundle.records.append(record | {"skipped": "not on this GPU, or not in this CUDA"})
                continue
            for kind in ("narrow", "wide", "cancelling", "special"):
                record_instruction(recorder, library, probe, number, kind, operand, output, terms, record)


def record_instruction(
    recorder: CallRecorder, library: Any, probe: Probe, number: int, kind: str, operand: str, output: str, terms: int,
    record: dict[str, Any],
) -> None:  # fmt: skip
    """Call one instruction on some tiles and add operands and results to the bundle."""
    a, b, c = (x.to(probe.device) for x in instruction_operands(kind, operand, output, terms))
    d = torch.empty_like(c)
    if probe.device.type == "cuda":
        torch.cuda.synchronize(probe.device)
        torch.cuda.set_device(probe.device)
    code = library.run(number, *(ctypes.c_void_p(x.data_ptr()) for x in (a, b, c, d)), a.shape[0])
    if code:
        recorder.bundle.records.append(record | {"label": kind, "skipped": f"the CUDA runtime gave error {code}"})
        return
    operands = {name: {"tensor": recorder.add(x)} for name, x in (("a", a), ("b", b), ("c", c), ("d", d))}
    format_name = "tf32" if operand == "float32" else operand
    recorder.bundle.records.append(record | {"label": kind, "operand": format_name, **operands})


def instruction_operands(kind: str, operand: str, output: str, terms: int) -> list[torch.Tensor]:
    """a, b and c of all tiles; operands of float32 hold tf32 values. The second half of the tiles has addends."""
    draw, source = Draw(torch.device("cpu")), torch.float32
    shapes = ((_TILES, _ROWS, terms), (_TILES, terms, _COLUMNS), (_TILES, _ROWS, _COLUMNS))
    if kind == "special":
        a, b, c = (draw.special(seed, *shape, dtype=torch.float16).float() for seed, shape in enumerate(shapes))
    else:
        spread = {"narrow": 1, "wide": 6, "cancelling": 2}[kind]
        a, b, c = (draw.wide(seed, *shape, dtype=source, spread=spread) for seed, shape in enumerate(shapes))
    if kind == "cancelling":
        a[..., 1::2] = -a[..., ::2]
    c[: _TILES // 2] = 0
    values = []
    for x, name in ((a, operand), (b, operand), (c, output)):
        if name == "float32" and x is not c:
            x = (x.view(torch.int32) & ~0x1FFF).view(torch.float32)
        limit = torch.finfo(getattr(torch, name)).max
        values.append(torch.where(x.isfinite(), x.clamp(-limit, limit), x).to(getattr(torch, name)).contiguous())
    return values


def _compiled(device: torch.device, folder: Path) -> tuple[Any, bool]:
    """The compiled source, and whether it has fp8 with fp16 output, which CUDA before 12.8 lacks."""
    if device.type != "cuda":
        raise _Unavailable("no CUDA device")
    if torch.version.hip is not None:
        raise _Unavailable("a ROCm build: the instructions are NVIDIA's")
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) < (8, 0):
        raise _Unavailable(f"compute capability {major}.{minor} is below 8.0")
    compiler = shutil.which("nvcc")
    source = pkgutil.get_data(__package__, "mma.cu")
    if compiler is None or source is None:
        raise _Unavailable("nvcc is not on this machine's PATH")
    path, target = folder / "mma.cu", folder / "mma.so"
    path.write_bytes(source)
    usual = [compiler, "-shared", "-Xcompiler", "-fPIC", f"-arch=sm_{major}{minor}", "-o", str(target), str(path)]
    for options in (["-DFP8_HALF_OUTPUT"], []):
        done = subprocess.run(usual + options, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return ctypes.CDLL(str(target)), bool(options)
    raise _Unavailable(f"nvcc refuses the source: {done.stderr.strip().splitlines()[-1:]}")
