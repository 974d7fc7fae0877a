"""Tables (and pictures) of certificates beside measurements."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
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
    for name in ("network", "accumulator", "shadow", "running"):
        table.add_column(name)
    cases = (("mlp", mlp(0), torch.randn(1024, 64)), ("resnet", resnet18(0, 32), torch.randn(4, 3, 32, 32)))
    for name, model, x in (*cases, ("transformer", transformer(0), torch.randn(64, 16, 64))):
        for accumulate in ("fp16", "fp32"):
            ratios: dict[str, list[float]] = {"shadow": [], "running": []}
            simulation = fpsim.run(model, "fp16", accumulate)
            for round_number in range(6):
                plain = timed(lambda s=simulation, x=x: s(x))
                for method, found in ratios.items():
                    again = timed(lambda m=model, x=x, a=accumulate, w=method: fpsim.certify(m, x, "fp16", a, method=w))
                    if round_number:
                        found.append(again / plain)
            table.add_row(name, accumulate, *(f"{statistics.median(found):.1f}" for found in ratios.values()))
    console.print(table)


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
