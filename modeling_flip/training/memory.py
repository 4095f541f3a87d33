"""Running out of memory, in one line that says what to try."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from accelerate.utils.memory import should_reduce_batch_size


@contextmanager
def out_of_memory(remedy: Callable[[], str]) -> Iterator[None]:
    """Where a device or the machine has no more memory, raise a ValueError that ends with the remedy.

    On a CPU that is where the system refuses memory. One that promises more than it has kills the process instead.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ValueError(f"out of memory: {remedy()}") from error


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, MemoryError) or should_reduce_batch_size(error)
