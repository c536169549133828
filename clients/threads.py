"""Threads for calls that block."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, TypeVar

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
# Not the event loop's own: there Pulumi's SDK keeps a thread for each registration that is under way. Where all of them
# wait for the engine, and the engine for a hook, the hook would wait for a thread for good.
_THREADS = ThreadPoolExecutor(thread_name_prefix="calls")


async def in_thread(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result:
    """Calls the function in a thread and returns its result, or raises what it raises."""
    call = partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await asyncio.get_running_loop().run_in_executor(_THREADS, call)
