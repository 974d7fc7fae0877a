"""One training run under emulation, from a configuration alone."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fpsim
from experiments.data import Dataset, load
from experiments.draws import Draws, digest
from experiments.metrics import correct, cross_entropy, rounded
from experiments.models import build, structure
from experiments.models.flash import Flash, FlashAttention
from experiments.models.initial import perturb
from experiments.models.scaled import Products, with_products
from experiments.models.transformers import Layer
from experiments.runs import Run

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
OPTIMIZERS = ("sgd", "adam", "adamw")
UPDATES = ("nearest", "stochastic", "kahan", "fp32")


@dataclass(frozen=True)
class Training:
    """What is trained and how. The learning rate is constant, or falls linearly to 0 with schedule="linear".

    fmt, accumulate, rounding, granularity   the machine, as for `fpsim.run`
    norms       the format inside norms, their statistics and parameters included; "" for that of the rest
    update      how updates are stored: "nearest", "stochastic", "kahan" (fpsim.optim), "fp32" (a float32 copy of the weights)
    loss        the loss in the machine's format ("machine") or in float64 ("wide")
    loss_scale  the loss is multiplied, and SGD's learning rate divided, by this power of two
    perturb     move every initial weight by one ulp of float32
    attention   where the attention of a GPT or ViT rounds, `experiments.models.flash`; None: as the machine has it
    products    what products of linear layers read and how they add, `experiments.models.scaled`; None: as the machine has it
    stored      round the initial weights to this format first, so that arms start from the same values
    limit       as many training examples; 0 for all
    tested      the first so many test examples; 0 for all
    """

    data: str
    model: str
    seed: int
    epochs: int = 1
    batch: int = 32
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 0.0
    optimizer: str = "sgd"
    eps: float = 1e-8
    schedule: str = "constant"
    fmt: str = "fp32"
    accumulate: str = "fp32"
    rounding: str = "nearest-even"
    granularity: str = "kernel"
    norms: str = ""
    update: str = "nearest"
    loss: str = "machine"
    loss_scale: float = 1.0
    perturb: bool = False
    stored: str = ""
    limit: int = 0
    tested: int = 0
    products: Products | None = None
    attention: Flash | None = None

    @classmethod
    def of(cls, configuration: Mapping[str, Any]) -> Training:
        """From a run's configuration. Raises ValueError for a key that is none of the above."""
        given = {key: value for key, value in configuration.items() if key != "arm"}
        if unknown := set(given) - {field.name for field in fields(cls)}:
            raise ValueError(f"a training has no {', '.join(sorted(unknown))}")
        for name, kind in (("products", Products), ("attention", Flash)):
            if given.get(name) is not None:
                given[name] = kind(**given[name])
        made = cls(**given)
        for name, known in (("optimizer", OPTIMIZERS), ("update", UPDATES), ("schedule", ("constant", "linear"))):
            if getattr(made, name) not in known:
                raise ValueError(f"{name}={getattr(made, name)!r}: there are {', '.join(known)}")
        if made.loss_scale != 1 and made.optimizer != "sgd":
            raise ValueError("loss_scale divides the learning rate, which undoes it for SGD alone")
        return made

    @property
    def machine(self) -> dict[str, Any]:
        """The arguments of `fpsim.run`."""
        fmt: Any = self.fmt
        if self.update == "fp32" or self.norms:
            fmt = {"*": self.fmt}
            if self.update == "fp32":
                fmt |= {"weight": "fp32", "optimizer": "fp32"}
            if self.norms:
                fmt |= dict.fromkeys(NORMS, self.norms)
        seed = self.seed if self.rounding == "stochastic" else None
        return {
            "fmt": fmt, "accumulate": self.accumulate, "rounding": self.rounding, "seed": seed,
            "granularity": self.granularity,
        }  # fmt: skip


class Trainer:
    """A training that can be stopped between epochs and taken up again, bit for bit."""

    def __init__(self, training: Training):
        self.training = training
        self.data: Dataset = load(training.data)
        model = build(training.model, training.seed)
        with torch.no_grad():
            if training.stored:
                for parameter in model.parameters():
                    parameter.copy_(fpsim.round(parameter.detach(), training.stored))
        if training.perturb:
            perturb(model, training.seed)
        if training.products is not None:
            model = with_products(model, training.products)
        if training.attention is not None:
            attention = FlashAttention(training.attention, training.seed)
            for module in model.modules():
                if isinstance(module, Layer):
                    module.attend = attention
        self._begin(model)

    def _begin(self, model: nn.Module) -> None:
        machine = self.training.machine
        if isinstance(machine["fmt"], dict):  # a class that the model has none of would be refused
            present = {type(module) for module in model.modules()}
            machine["fmt"] = {key: value for key, value in machine["fmt"].items() if isinstance(key, str) or key in present}
        self.simulation = fpsim.run(model, **machine)
        self.optimizer = self._optimizer()
        self.losses: list[float] = []
        self.epoch = 0

    def _optimizer(self) -> torch.optim.Optimizer:
        asked, parameters = self.training, self.simulation.parameters()
        if asked.optimizer == "sgd":
            lr = asked.lr / asked.loss_scale
            inner: torch.optim.Optimizer = torch.optim.SGD(
                parameters, lr=lr, momentum=asked.momentum, weight_decay=asked.weight_decay * asked.loss_scale
            )
        else:
            kind = torch.optim.Adam if asked.optimizer == "adam" else torch.optim.AdamW
            inner = kind(parameters, lr=asked.lr, eps=asked.eps, weight_decay=asked.weight_decay)
        if asked.update == "stochastic":
            return fpsim.optim.Stochastic(inner, seed=asked.seed)
        return fpsim.optim.Kahan(inner) if asked.update == "kahan" else inner

    @property
    def examples(self) -> int:
        return self.training.limit or len(self.data.targets)

    def run_epoch(self) -> None:
        """Every example once, in an order that depends on the seed and the epoch."""
        asked = self.training
        order = Draws(asked.seed, f"order {self.epoch}").permutation(len(self.data.targets))[: self.examples]
        steps = -(-self.examples // asked.batch)
        self.simulation.train()
        with self.simulation:
            for number_, start in enumerate(range(0, self.examples, asked.batch)):
                if asked.schedule == "linear":
                    left = 1 - (self.epoch * steps + number_) / (asked.epochs * steps)
                    for group in self.optimizer.param_groups:
                        group["lr"] = asked.lr / asked.loss_scale * left
                batch = order[start : start + asked.batch]
                self._step(torch.tensor(self.data.inputs[batch]), torch.tensor(self.data.targets[batch]))
        self.epoch += 1

    def _step(self, inputs: Tensor, targets: Tensor) -> None:
        logits = self.simulation(inputs).flatten(0, -2)
        loss = F.cross_entropy(logits if self.training.loss == "machine" else logits.double(), targets.flatten())
        self.optimizer.zero_grad()
        (loss * self.training.loss_scale if self.training.loss_scale != 1 else loss).backward()
        self.optimizer.step()
        self.losses.append(loss.item())

    def logits(self, batch: int = 200) -> np.ndarray:
        """Those of the test data, computed by the machine, float64."""
        self.simulation.eval()
        inputs = self.data.test_inputs[: self.training.tested or None]
        with torch.no_grad(), self.simulation:
            parts = [
                self.simulation(torch.tensor(inputs[start : start + batch])).double() for start in range(0, len(inputs), batch)
            ]
        return torch.cat(parts).flatten(0, -2).numpy()

    def state(self) -> dict[str, Any]:
        """All that the rest of the training depends on."""
        return {
            "model": self.simulation.state_dict(), "optimizer": self.optimizer.state_dict(), "losses": self.losses,
            "epoch": self.epoch, "draws": self.simulation.rng_state(),
        }  # fmt: skip

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.simulation.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.simulation.set_rng_state(state["draws"])
        self.losses, self.epoch = list(state["losses"]), state["epoch"]

    def result(self) -> dict[str, Any]:
        """Accuracy in integers, losses, the digest of all weights, and what happened to the numbers."""
        logits, targets = self.logits(), self.data.test_targets[: self.training.tested or None].reshape(-1)
        held = [tensor.detach().numpy() for tensor in self.simulation.state_dict().values()]
        total = self.simulation.report().total
        return {
            "correct": correct(logits, targets), "of": len(targets), "test_loss": cross_entropy(logits, targets),
            "loss": rounded(math.fsum(self.losses[-20:]) / len(self.losses[-20:])) if self.losses else "none",
            "stable": bool(np.isfinite(self.losses).all() and np.isfinite(logits).all()),
            "digest": digest(*held), "steps": len(self.losses), "updates": total.updates, "lost": total.lost,
            "overflows": total.overflows, "underflows": total.underflows,
        }  # fmt: skip


def train(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The result of a whole training; where checkpoints are kept, it goes on from the last one."""
    trainer = Trainer(Training.of(configuration))
    path = checkpoint(configuration)
    if path is not None and path.exists():
        trainer.resume(torch.load(path))
    while trainer.epoch < trainer.training.epochs:
        trainer.run_epoch()
        if path is not None:
            save(trainer.state(), path)
    return trainer.result()


def checkpoint(configuration: Mapping[str, Any]) -> Path | None:
    """Where the checkpoint of a run is, in the folder that FPSIM_CHECKPOINTS names; None without one."""
    folder = os.environ.get("FPSIM_CHECKPOINTS")
    return Path(folder) / f"{Run('', dict(configuration)).key}.pt" if folder else None


def save(state: Any, path: Path) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    torch.save(state, beside)
    os.replace(beside, path)


def expected_seconds(training: Training) -> float:
    """Processor time, from multiply-adds at 3 billion a second, three passes of them a step."""
    return _expected_seconds(replace(training, seed=0))


@functools.cache
def _expected_seconds(training: Training) -> float:
    data = load(training.data)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        structure(training.model).eval()(torch.empty(1, *data.inputs.shape[1:]))
    examples = training.epochs * (training.limit or len(data.targets)) + (training.tested or len(data.test_targets)) / 3
    return 3 * examples * counter.get_total_flops() / 2 / 3e9


@functools.lru_cache(maxsize=8)
def trained(training: Training) -> dict[str, Tensor]:
    """The state of the model after a whole training; not to be written to."""
    trainer = Trainer(training)
    for _ in range(training.epochs):
        trainer.run_epoch()
    return {name: value.clone() for name, value in trainer.simulation.state_dict().items()}
