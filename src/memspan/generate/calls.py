"""How the methods of `Memory` are called: options checked by name, and their async twins."""

from __future__ import annotations

import asyncio
import dataclasses
import difflib
import functools
import inspect
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from typing import Any, Concatenate, ParamSpec, TypeVar

from memspan.generate.sampling import Sampling

P = ParamSpec("P")
Self = TypeVar("Self")
Result = TypeVar("Result")

_OF_SAMPLING = {field.name for field in dataclasses.fields(Sampling)}

# Former names of arguments, by the method, which work until the next version.
_RENAMED = {("get", "id"): "ids"}


def named_options(*more: str) -> Callable[[Callable[P, Result]], Callable[P, Result]]:
    """A method that refuses options it does not have, and names the nearest: a mistyped filter must not be no filter.

    Args:
        more: what the method takes as `**options`.
    """

    def decorate(method: Callable[P, Result]) -> Callable[P, Result]:
        known = [*_names(method), *more]

        @functools.wraps(method)
        def call(*args: P.args, **options: P.kwargs) -> Result:
            for name in options.keys() - known:
                new = _RENAMED.get((method.__name__, name))
                if new is None:
                    raise TypeError(_unknown(method, name, options[name], known))
                warnings.warn(f"{name}= is called {new}= now", DeprecationWarning, stacklevel=2)
                options[new] = options.pop(name)
            return method(*args, **options)

        return call

    return decorate


def _names(method: Callable[..., Any]) -> list[str]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [name for name, x in inspect.signature(method).parameters.items() if x.kind in named]


def _unknown(method: Callable[..., Any], name: str, value: Any, known: Iterable[str]) -> str:
    called = f"Memory.{method.__name__} has no option {name!r}"
    if name == "namespace":
        return f"{called}: a memory is one namespace, and another one is memory.in_namespace({value!r})"
    if "sampling" in known and name in _OF_SAMPLING:
        return f"{called}: it is of sampling=Sampling({name}={value!r})"
    options = sorted(option for option in known if option != "self")
    near = difflib.get_close_matches(name, options, 1)
    return f"{called}; did you mean {near[0]!r}?" if near else f"{called}; it has {', '.join(options)}"


def in_thread(
    method: Callable[Concatenate[Self, P], Result],
) -> Callable[Concatenate[Self, P], Coroutine[Any, Any, Result]]:
    """The async twin of a method, named with an `a` before: it runs in a worker thread."""

    @functools.wraps(method)
    async def twin(self: Self, *args: P.args, **options: P.kwargs) -> Result:
        return await asyncio.to_thread(method, self, *args, **options)

    return _as_twin(twin, method)


def streamed_in_thread(
    method: Callable[Concatenate[Self, P], Iterator[Result]],
) -> Callable[Concatenate[Self, P], AsyncIterator[Result]]:
    """As `in_thread`, of a method that yields: every item is made in a worker thread when it is asked for."""

    @functools.wraps(method)
    def twin(self: Self, *args: P.args, **options: P.kwargs) -> AsyncIterator[Result]:
        return _streamed(method(self, *args, **options))

    return _as_twin(twin, method)


async def _streamed(items: Iterator[Result]) -> AsyncIterator[Result]:
    end: Any = object()
    making: asyncio.Future[Any] | None = None
    try:
        while True:
            making = asyncio.ensure_future(asyncio.to_thread(next, items, end))
            item = await asyncio.shield(making)  # a thread cannot be cancelled
            if item is end:
                return
            yield item
    finally:
        if making is not None:
            await asyncio.wait([making])
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _as_twin(twin: Callable[P, Result], method: Callable[..., Any]) -> Callable[P, Result]:
    twin.__name__ = f"a{method.__name__}"
    twin.__qualname__ = method.__qualname__.replace(method.__name__, twin.__name__)
    twin.__doc__ = f"`{method.__name__}` in a worker thread."
    return twin
