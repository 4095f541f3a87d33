"""Requests that come together are computed together, and none has a part in another's fate."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from modeling_flip.serving.batching import Batcher, QueueFullError


def batched(work: Callable[[Batcher], Any], max_waiting: int = 100) -> list[int]:
    """The sizes of the batches that `work` makes, of four rows at most."""
    sizes: list[int] = []

    async def run() -> None:
        batcher = Batcher(4, max_waiting, sizes.append)
        try:
            await asyncio.wait_for(work(batcher), 30)
        finally:
            batcher.close()

    asyncio.run(run())
    return sizes


def double(items: list[int]) -> list[int]:
    if -1 in items:
        raise ValueError("-1 is no item")
    return [2 * item for item in items]


def test_batches_are_full_and_in_order() -> None:
    async def work(batcher: Batcher) -> None:
        results = await asyncio.gather(*(batcher.submit(double, [i, i]) for i in range(5)))
        assert results == [[2 * i, 2 * i] for i in range(5)]

    assert batched(work) == [4, 4, 2]


def test_an_error_is_its_askers_alone_and_other_work_is_not_mixed_in() -> None:
    async def work(batcher: Batcher) -> None:
        jobs = [batcher.submit(double, [i]) for i in (1, -1, 2)] + [batcher.submit(lambda items: ["alone"], [None], 3)]
        first, failed, second, other = await asyncio.gather(*jobs, return_exceptions=True)
        assert (first, second, other) == ([2], [4], ["alone"]) and isinstance(failed, ValueError)
        assert await batcher.submit(double, [5]) == [10]

    assert batched(work) == [3, 3, 1]


class Panic(BaseException):
    """As those of Rust's libraries."""


@pytest.mark.parametrize("error", [Panic, StopIteration])
def test_what_is_no_ordinary_error_is_its_askers_alone_too(error: type[BaseException]) -> None:
    def run(items: list[int]) -> list[int]:
        if -1 in items:
            raise error("odd")
        return items

    async def work(batcher: Batcher) -> None:
        jobs = [batcher.submit(run, [i]) for i in (1, -1)]
        first, failed = await asyncio.gather(*jobs, return_exceptions=True)
        assert first == [1] and isinstance(failed, RuntimeError) and "odd" in str(failed)
        assert batcher.is_alive

    batched(work)


def test_a_full_queue_refuses() -> None:
    going = threading.Event()

    def slow(items: list[int]) -> list[int]:
        assert going.wait(20)
        return items

    async def work(batcher: Batcher) -> None:
        first = asyncio.create_task(batcher.submit(slow, [0]))
        await asyncio.sleep(0.1)  # it is being computed, and waits no more
        waiting = [asyncio.create_task(batcher.submit(double, [i])) for i in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(QueueFullError):
            await batcher.submit(double, [4])
        waiting[0].cancel()  # whoever goes away costs the others nothing
        going.set()
        assert await first == [0]
        assert await asyncio.gather(*waiting[1:]) == [[2], [4]]

    assert batched(work, max_waiting=3) == [1, 2]  # what nobody waits for any more is not computed
