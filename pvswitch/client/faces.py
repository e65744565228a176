# SPDX-License-Identifier: Apache-2.0
"""One definition of each call, two ways to use it: awaited, or waited for.

A call is written once, as a coroutine function (or an async generator) in the body of
`pvswitch.client.operations.Operations`. `operation` and `stream` are what it becomes there: on a client that is
`Awaited` the call returns what to await, on one that is `Blocking` it returns the result. Both are typed, arguments
and result.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

P = ParamSpec("P")
R = TypeVar("R")


class Awaited:
    """Base of a client whose calls are awaited."""


class Blocking:
    """Base of a client whose calls return when they are done; they run on an event loop of its own."""

    def __init__(self) -> None:
        """The loop starts with the first call."""
        self._runner: asyncio.Runner | None = None

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run `work` to its end and return its result."""
        if self._runner is None:
            self._runner = asyncio.Runner()
        try:
            return self._runner.run(work)
        finally:
            work.close()  # else a loop that refuses leaves it behind, never awaited

    def stop(self, last: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do `last` and end the loop, if it has started; the next call starts one again."""
        if self._runner is not None:
            self.run(last())
            self._runner.close()
            self._runner = None


class operation(Generic[P, R]):
    """A call with one result."""

    def __init__(self, function: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> None:
        """`function` is the coroutine function; its first argument is the client."""
        self._function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # to mypy only callables wrap

    @overload
    def __get__(self, client: None, owner: object = None) -> Self: ...
    @overload
    def __get__(self, client: Awaited, owner: object = None) -> Callable[P, Coroutine[Any, Any, R]]: ...
    @overload
    def __get__(self, client: Blocking, owner: object = None) -> Callable[P, R]: ...

    def __get__(self, client: Awaited | Blocking | None, owner: object = None) -> Any:
        """Return the call, bound to a client."""
        if client is None:
            return self
        bound = functools.partial(self._function, client)
        if not isinstance(client, Blocking):
            return bound

        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            return client.run(bound(*args, **kwargs))

        return call


class stream(Generic[P, R]):
    """A call with one result after the other."""

    def __init__(self, function: Callable[Concatenate[Any, P], AsyncGenerator[R, None]]) -> None:
        """`function` is the async generator function; its first argument is the client."""
        self._function = function
        functools.update_wrapper(self, function)  # type: ignore[arg-type]  # to mypy only callables wrap

    @overload
    def __get__(self, client: None, owner: object = None) -> Self: ...
    @overload
    def __get__(self, client: Awaited, owner: object = None) -> Callable[P, AsyncGenerator[R, None]]: ...
    @overload
    def __get__(self, client: Blocking, owner: object = None) -> Callable[P, Generator[R, None, None]]: ...

    def __get__(self, client: Awaited | Blocking | None, owner: object = None) -> Any:
        """Return the call, bound to a client."""
        if client is None:
            return self
        bound = functools.partial(self._function, client)
        if not isinstance(client, Blocking):
            return bound

        def call(*args: P.args, **kwargs: P.kwargs) -> Generator[R, None, None]:
            return _each(client, bound(*args, **kwargs))

        return call


def _each(client: Blocking, source: AsyncGenerator[R, None]) -> Generator[R, None, None]:
    async def step() -> list[R]:
        try:
            return [await anext(source)]
        except StopAsyncIteration:
            return []

    async def end() -> None:
        await source.aclose()

    try:
        while item := client.run(step()):
            yield item[0]
    finally:
        client.run(end())
