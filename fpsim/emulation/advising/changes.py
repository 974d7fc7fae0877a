"""What remedies change of a recipe; each gives it by one or more strengths, or raises CannotTry with the reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from fpsim.emulation.advising.evidence import Evidence
from fpsim.emulation.advising.recipe import WIDE, Recipe, Rewrite, key_of
from fpsim.emulation.advising.rewriting import CannotTry
from fpsim.numbers.formats import Format, get_format
from fpsim.report.verdict import number

Change = tuple[str, Recipe]  # what it is called, and the recipe with it

_SIBLINGS = ("e5m2", "fp16", "bf16")


# Changes of the loop


def scaled_loss(evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """The loss times a power of two near the top of the format, or half as far; a smaller one for what overflows."""
    if not recipe.call.trains:
        raise CannotTry("nothing is trained: there is no optimizer")
    if recipe.loss_scale != 1:
        raise CannotTry("the loss is scaled already")
    most = min(evidence.fmt.emax, 24)
    for exponent in (-4, -8, -16) if evidence.breaks else (most, most // 2):
        yield f"a loss scale of 2^{exponent}", recipe.having(loss_scale=2.0**exponent)


def larger_epsilon(evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """An epsilon that is a normal number of the format."""
    if evidence.epsilon is None:
        raise CannotTry("the optimizer has no epsilon")
    least = evidence.fmt.min_normal
    for epsilon in sorted({least, min(16 * least, 2.0**-6), max(least, 1e-4)}):
        if epsilon > evidence.epsilon:
            yield f"an epsilon of {epsilon:.3g}", recipe.having(epsilon=epsilon)


def clipped_gradients(evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """All gradients together of a norm of at most 1."""
    if not recipe.call.trains:
        raise CannotTry("nothing is trained: there is no optimizer")
    yield "gradients clipped to a norm of 1", recipe.having(clip=1.0)


def wrapped(text: str, title: str, evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """One of `fpsim.optim` around the optimizer."""
    if recipe.wrapper:
        raise CannotTry("the optimizer is wrapped already")
    if "MasterCopy" in text and not evidence.policy.is_native:
        raise CannotTry("a named format has no float32 to keep; weights and optimizer in fp32 are the same")
    if "MasterCopy" not in text and (recipe.entries or evidence.is_by_module):
        raise CannotTry("under a mapping of formats the emulation rounds updates itself")
    yield title, recipe.having(wrapper=f"fpsim.optim.{text}")


# Changes of the source, and of what flows


def rewritten(rewrite: Callable[..., Rewrite], title: str, evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """The method or function in which it happened, written anew."""
    if evidence.path is None or evidence.event is None:
        raise CannotTry("the line is in no module of the model")
    done = rewrite(evidence.model, evidence.path, evidence.event.place)
    if done.title in {item.title for item in recipe.rewrites}:
        raise CannotTry(f"{done.title} is written anew already")
    yield f"{title} in {done.title}", recipe.having(rewrites=(*recipe.rewrites, done))


def bounded_inputs(evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """Inputs of the blamed module up to where its result would still fit."""
    event = evidence.event
    if not evidence.path or event is None or event.exact is None or not event.operands or not math.isfinite(event.exact):
        raise CannotTry("there is no module before whose overflow an input could be bounded")
    largest = max((abs(value) for _, value in event.operands[:1] if math.isfinite(value)), default=0.0)
    if not largest or not event.exact:
        raise CannotTry("what overflowed is not made of an input")
    limit = 2.0 ** math.floor(math.log2(largest * min(1.0, evidence.fmt.max_finite / abs(event.exact))))
    clamps = (*recipe.clamps, (evidence.path, limit))
    yield f"inputs of {evidence.path} clipped to {number(limit)}", recipe.having(clamps=clamps)


def finite_masks(evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """The masks that the blamed attention of torch is handed, with the lowest finite number for -infinity."""
    module = None if evidence.path is None else evidence.model.get_submodule(evidence.path)
    if not isinstance(module, nn.MultiheadAttention):
        raise CannotTry("it is in no torch.nn.MultiheadAttention, which makes infinities of its masks")
    yield f"finite masks for {evidence.path or 'the model'}", recipe.having(masks=(*recipe.masks, evidence.path))


# Changes of the arithmetic


def accumulated(text: str, title: str, evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """Another accumulator; {} in its text is the present one's format."""
    held = evidence.policy.accumulator.held
    if held is None or not evidence.has_narrow_sums:
        raise CannotTry(f"sums are accumulated in {evidence.policy.accumulator} already")
    accumulate = text.format(held.name)
    yield f"{title}, {accumulate}", recipe.having(accumulate=accumulate)


def in_format(evidence: Evidence, recipe: Recipe, path: str | None, fmt: str) -> Recipe:
    """One module in a format of its own; of the model itself, or what is outside of modules, only its own operations."""
    _require_named(evidence)
    if path:
        return recipe.with_formats(*_entries(evidence, [path], fmt))
    if evidence.is_by_module:
        raise CannotTry("what is outside of the model's parts cannot be told apart in the mapping that was given")
    kept = [entry for entry in recipe.entries if entry[0] != "*"]
    whole = [key for key, value in kept if isinstance(value, str)]
    children = [(key_of(name, name in dict(kept)), "") for name in evidence.children if key_of(name) not in whole]
    return recipe.having(entries=(("*", fmt), *children, *kept))


def module_in(fmts: Callable[[Evidence], Iterable[str]], evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """The blamed module in other formats."""
    if evidence.is_whole:
        raise CannotTry("the model has no parts: that would be another format for everything")
    name = evidence.path or f"what {type(evidence.model).__name__} computes itself, the loss included"
    for fmt in fmts(evidence):
        yield f"{fmt} for {name}", in_format(evidence, recipe, evidence.path, fmt)


def from_here_on(evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """The blamed module, with the layer that it is in, and all that ran after it, in fp32."""
    _require_named(evidence)
    paths = [module.path for module in evidence.trial.report.modules if module.path in evidence.modules]
    if not evidence.path or evidence.path not in paths:
        raise CannotTry("no module of the model is blamed")
    start = _layer_around(evidence.path)
    after = paths[paths.index(start if start in paths else evidence.path) :]
    if len(after) < 2:
        raise CannotTry("no module runs after the blamed one")
    outermost = [path for path in after if not any(path.startswith(f"{other}.") for other in after)]
    yield f"{WIDE} from {start} on", recipe.with_formats(*_entries(evidence, outermost, WIDE))


def _entries(evidence: Evidence, paths: list[str], fmt: str) -> list[tuple[str, Any]]:
    """Of modules in a format; of those that share parameters with others what they compute alone."""
    shared = _shared_with_others(evidence, paths)
    return [(key_of(path), {"activation": fmt} if path in shared else fmt) for path in paths]


def _shared_with_others(evidence: Evidence, paths: list[str]) -> set[str]:
    """Those of the modules in which is a parameter that modules outside of them have too, and give a format."""
    held: dict[int, set[str]] = {}
    for path, module in evidence.modules.items():
        around = next((outer for outer in paths if path == outer or path.startswith(f"{outer}.")), "")
        for parameter in module.parameters(recurse=False):
            held.setdefault(id(parameter), set()).add(around)
    return {path for places in held.values() if "" in places for path in places}


def _layer_around(path: str) -> str:
    """The outermost numbered module that a module is in, whose own additions have the same numbers; itself without one."""
    parts = path.split(".")
    numbered = (count for count, part in enumerate(parts, 1) if part.isdigit())
    return ".".join(parts[: next(numbered, len(parts))])


def norms_wide(evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """All normalization layers in fp32."""
    _require_named(evidence)
    if not evidence.norms:
        raise CannotTry("the model has no normalization layers")
    entries = [(key_of(path), WIDE) for path in evidence.norms if path]
    if not entries:
        raise CannotTry("the model is one normalization layer")
    yield f"{WIDE} for all normalization layers", recipe.with_formats(*entries)


def last_wide(evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """The last layer in fp32."""
    _require_named(evidence)
    if evidence.last is None:
        raise CannotTry("the model has no last layer")
    yield f"{WIDE} for the last layer, {evidence.last}", recipe.with_formats(*_entries(evidence, [evidence.last], WIDE))


def roles(title: str, names: tuple[str, ...], evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """Roles of all modules in fp32."""
    _require_named(evidence)
    if recipe.wrapper:
        raise CannotTry("under a mapping of formats the emulation rounds updates itself")
    yield title, recipe.with_formats(*((role, WIDE) for role in names))


def everything_in(fmts: Callable[[Evidence], Iterable[str]], evidence: Evidence, recipe: Recipe) -> Iterable[Change]:
    """Other formats for everything."""
    _require_named(evidence)
    if evidence.is_by_module:
        raise CannotTry("the formats were given as a mapping; change that")
    others = tuple(entry for entry in recipe.entries if entry[0] != "*")
    for fmt in fmts(evidence):
        yield f"{fmt} for everything", recipe.having(entries=(("*", fmt), *others))


def wide(evidence: Evidence) -> list[str]:
    """fp32."""
    return [WIDE]


def siblings(evidence: Evidence) -> list[str]:
    """Other formats of at most 16 bits that have more of what was too little: range above or below, or precision."""
    present = evidence.fmt

    def has_more(fmt: Format) -> bool:
        if evidence.breaks:
            return fmt.emax > present.emax
        return fmt.emin < present.emin if evidence.vanishes else fmt.precision > present.precision

    return [name for name in _SIBLINGS if has_more(get_format(name)) and get_format(name).bits >= present.bits]


def _require_named(evidence: Evidence) -> None:
    if evidence.policy.is_native:
        raise CannotTry('under fmt="native" each dtype means itself: a cast in the model does it')
