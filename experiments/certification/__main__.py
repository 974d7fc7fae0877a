"""Tables (and pictures) of certificates beside measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.table import Table

import fpsim
from experiments.certification.comparison import ALL, Row, compare
from experiments.certification.networks import mlp, resnet18, transformer

console = Console(width=110)


def show(title: str, rows: dict[str, Row]) -> None:
    table = Table(title=title, title_justify="left")
    for name in ("method", "mean bound", "mean bound / mean error", "certified", "violated", "logits"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for method, row in rows.items():
        certified = f"{row.certified} of {row.classes}" if method in ALL else "-"
        table.add_row(
            method, f"{row.bound / row.logits:.3g}", f"{row.ratio:.3g}", certified, str(row.violated), str(row.logits)
        )
    console.print(table)


def run_mlp(draws: int, pictures: Path | None) -> None:
    """`draws` inputs over 20 networks."""
    seeds = range(20)
    models = [mlp(seed) for seed in seeds]
    inputs = [torch.randn(-(-draws // 20), 64, generator=torch.Generator().manual_seed(1000 + seed)) for seed in seeds]
    for accumulate in ("fp16", "fp32"):
        show(f"MLP 64-256-256-10, fp16 with accumulator {accumulate}", compare(models, inputs, "fp16", accumulate, ALL))
    draw(models[0], inputs[0][:8], "fp16", pictures, "mlp")


def run_resnet(draws: int, pictures: Path | None) -> None:
    model = resnet18(0)
    x = torch.randn(max(1, draws // 500), 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for accumulate in ("fp32", "fp16"):
        show(f"ResNet-18, fp16 with accumulator {accumulate}", compare([model], [x], "fp16", accumulate, ALL))
    draw(model, x[:1], "fp32", pictures, "resnet")


def run_transformer(draws: int, pictures: Path | None) -> None:
    model = transformer(0)
    x = torch.randn(max(1, draws // 50), 16, 64, generator=torch.Generator().manual_seed(1))
    for accumulate in ("fp32", "fp16"):
        show(f"transformer, fp16 with accumulator {accumulate}", compare([model], [x], "fp16", accumulate, ALL))
    draw(model, x[:4], "fp32", pictures, "transformer")


def draw(model: torch.nn.Module, x: torch.Tensor, accumulate: str, pictures: Path | None, name: str) -> None:
    certificate = fpsim.certify(model, x, "fp16", accumulate, method="mean-value")
    console.print(certificate.table())
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        certificate.plot().savefig(pictures / f"certificate-{name}.png", dpi=110)


def run_speed(draws: int, pictures: Path | None) -> None:
    """Medians of interleaved runs: a method's time over the emulated forward pass."""
    table = Table(title="time over the emulated forward pass", title_justify="left")
    for name in ("network", "input", "accumulator", "shadow", "running", "running, its layers"):
        table.add_column(name)
    cases = [("mlp", mlp(0), (rows, 64)) for rows in (16, 128, 1024)]
    cases += [("transformer", transformer(0), (rows, 32, 64)) for rows in (1, 8, 32)]
    for name, model, shape in (*cases, ("resnet, width 32", resnet18(0, 32), (4, 3, 32, 32))):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        for accumulate in ("fp16", "fp32"):
            simulation = fpsim.run(model, "fp16", accumulate)
            cells = ratios(partial(simulation, x), calls(model, x, accumulate))
            table.add_row(name, " x ".join(map(str, shape)), accumulate, *(f"{cell:.1f}" for cell in cells))
    console.print(table)


def calls(model: torch.nn.Module, x: torch.Tensor, accumulate: str) -> list[Callable[[], object]]:
    shadow, running = (partial(fpsim.certify, model, x, "fp16", accumulate, method=name) for name in ("shadow", "running"))
    return [shadow, running, lambda: running().layers]


def ratios(plain: Callable[[], object], others: list[Callable[[], object]], rounds: int = 15) -> list[float]:
    """Medians of the time of each over that of `plain`, all run one after the other in every round."""
    found = []
    for _ in range(rounds + 1):
        once = timed(plain)
        found.append([timed(other) / once for other in others])
    return [statistics.median(column) for column in zip(*found[1:], strict=True)]


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        function()
    return time.perf_counter() - start


PARTS = {"mlp": run_mlp, "resnet": run_resnet, "transformer": run_transformer, "speed": run_speed}


@click.command()
@click.argument("parts", nargs=-1, type=click.Choice(list(PARTS)))
@click.option("--draws", default=1000, show_default=True, help="inputs of the MLP (transformer: a 50th, ResNet-18: a 500th)")
@click.option("--pictures", type=click.Path(path_type=Path), help="where to put a picture of each network's certificate")
def main(parts: tuple[str, ...], draws: int, pictures: Path | None) -> None:
    """Bounds beside measurements, for every method."""
    torch.set_num_threads(1)  # matrices are small, and the ratios of "speed" are those of one thread
    for part in parts or PARTS:
        PARTS[part](draws, pictures)


if __name__ == "__main__":
    main()
