"""What is reached through a simulation enters its context by itself: functions when called, generators while they run."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AbstractContextManager
from typing import Any

import torch

Context = Callable[[], AbstractContextManager[Any]]

_FUNCTIONS = (
    types.FunctionType,
    types.MethodType,
    types.BuiltinFunctionType,
    types.MethodWrapperType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    functools.partial,
    functools._lru_cache_wrapper,
    torch.jit.ScriptFunction,
    torch._C.ScriptMethod,
)


def computes(owner: Any, name: str) -> bool:
    """Whether reading this attribute runs code: that of a property, of another descriptor or of `__getattr__`."""
    if name in getattr(owner, "__dict__", ()):
        return False
    try:
        attribute = inspect.getattr_static(type(owner), name)
    except AttributeError:
        return type(owner).__getattr__ is not torch.nn.Module.__getattr__
    return hasattr(type(attribute), "__get__") and not isinstance(attribute, (*_FUNCTIONS, staticmethod, classmethod))


def entering(value: Any, context: Context) -> Any:
    """A function as one that runs inside `context()`, with what it yields or awaits; everything else as it is."""
    if not isinstance(value, _FUNCTIONS):
        return value

    def inside(*args: Any, **kwargs: Any) -> Any:
        with context():
            result = value(*args, **kwargs)
        return resumed(result, context)

    return functools.update_wrapper(inside, value)


def resumed(result: Any, context: Context) -> Any:
    """A generator, coroutine or asynchronous generator as one that is inside `context()` whenever it runs; else as it is."""
    if inspect.isgenerator(result):
        return _driven(result, context)
    if inspect.iscoroutine(result):
        return types.coroutine(_driven)(result, context)
    if inspect.isasyncgen(result):
        return _awaited(result, context)
    return result


def _driven(running: Any, context: Context) -> Generator[Any, Any, Any]:
    step: Callable[[Any], Any] = running.send
    sent: Any = None
    while True:
        try:
            with context():
                value = step(sent)
        except StopIteration as stop:
            return stop.value
        try:
            sent = yield value
            step = running.send
        except GeneratorExit:
            with context():
                running.close()
            raise
        except BaseException as error:  # noqa: BLE001 - handed on to what it was thrown at
            sent, step = error, running.throw


async def _awaited(running: Any, context: Context) -> AsyncIterator[Any]:
    try:
        while True:
            try:
                value = await types.coroutine(_driven)(running.asend(None), context)
            except StopAsyncIteration:
                return
            yield value
    finally:
        await types.coroutine(_driven)(running.aclose(), context)
