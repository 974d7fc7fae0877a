"""Every public entry of fpsim once, and training steps; run by itself, prints which functions were compiled for it."""

import functools
import json
import sys
import warnings

import numpy as np
import torch
import transformers
from numba.core import event

import fpsim
from fpsim.arrays.elementary import NAMES
from fpsim.cli import kernel_sets, kernels_of_models

VALUES = (  # which compute nothing
    "Accumulator Certificate Counters FORMATS FixedPoint Format NumberSystem Order Report Rounding Simulation Tolerance Tree "
    "UnsupportedOp get_accumulator get_format get_num_threads get_rounding get_system set_num_threads"
)


def gpt2():
    shape = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 50, "n_positions": 64}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape, bos_token_id=0, eos_token_id=0))


def models():
    """A transformer that is another library's, and torch by itself."""
    adam, tokens = functools.partial(torch.optim.AdamW, eps=1e-4), torch.randint(0, 50, (2, 48))
    for policy in ({"fmt": "fp16", "accumulate": "fp16"}, {"fmt": "bf16"}, {"fmt": "fp16", "granularity": "primitive"}):
        kernels_of_models.train(gpt2(), lambda model: model(tokens, labels=tokens).loss, adam, **policy)
    with fpsim.emulate(fmt="bf16", accumulate="bf16"):
        torch.ones(4, 3, 16, 16) @ torch.ones(4, 3, 16, 16)


def compare():
    """With every observer."""
    batch = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))
    sgd = functools.partial(torch.optim.SGD, lr=0.01)
    names = ("range", "histograms", "swamping", "events", "shadow", "coverage")

    def loss(model, images, labels):
        return torch.nn.functional.cross_entropy(model(images), labels)

    fpsim.compare(kernels_of_models.cnn(), [batch], ["fp16", "bf16"], loss, sgd, observe=names)


def advise():
    """Of a sum that overflows, so that changes are tried."""
    sgd = functools.partial(torch.optim.SGD, lr=0.01)
    fpsim.advise(torch.nn.Linear(8, 4), [torch.full((4, 8), 6e4)], lambda model, x: model(x).square().mean(), sgd)


def bundles():
    fpsim.record("suite.bundle", device="cpu", sections=["products"])
    with fpsim.recording("model.bundle", device="cpu"):
        torch.ones(8, 40) @ torch.ones(40, 8)
    for name in ("suite.bundle", "model.bundle"):
        fpsim.crosscheck(name)


def reveal():
    fpsim.reveal(lambda terms: terms.astype(np.float32).sum(), 16)
    fpsim.reveal_shapes(np.matmul, [(1, 4, 1), (2, 4, 1)])


#: The names of `fpsim.__all__` that each function calls.
ENTRIES = {
    "roundings": "round",
    "operations": "add div fma mul sqrt sub",
    "codes": "decode encode next_down next_up ulp",
    "products": "dot matmul",
    "sums": "cumsum mean sum",
    "convolutions": "conv conv_input_gradient conv_weight_gradient",
    "functions": " ".join(NAMES),
    "train_cnn": "run",
    "certificates": "certify tolerance",
    reveal: "reveal reveal_shapes",
    models: "emulate run",
    advise: "advise",
    compare: "compare",
    bundles: "crosscheck record recording",
}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    covered = set(" ".join([VALUES, *ENTRIES.values()]).split())
    assert covered == set(fpsim.__all__), covered ^ set(fpsim.__all__)
    pieces = kernel_sets.work_of((kernel_sets.EVERYTHING,))
    assert {name for name in ENTRIES if isinstance(name, str)} <= {piece.function for piece in pieces}
    torch.manual_seed(0)
    with event.install_recorder("numba:compile") as recorded:
        for piece in pieces:
            kernel_sets.do(piece)
        for entry in filter(callable, ENTRIES):
            entry()
    json.dump([one.data["dispatcher"].__qualname__ for _, one in recorded.buffer if one.is_start], sys.stdout)
