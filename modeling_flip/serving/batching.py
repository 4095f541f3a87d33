"""Requests that come at the same time are computed together, in one thread."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

Run = Callable[[list[Any]], Sequence[Any]]


class QueueFullError(Exception):
    """More rows wait than may wait."""


@dataclass(eq=False)
class Job:
    """One request: `run(items)` gives a result for each item; jobs of the same `run` go together."""

    run: Run
    items: list[Any]
    size: int
    done: asyncio.Future[list[Any]] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Batcher:
    """Computes jobs in the order in which they came, those that wait together in one batch. To be made in a running event loop.

    A job that comes alone starts at once. Jobs that come while a batch is being computed form the next one.

    Args:
        max_batch_size: rows of a batch; a larger job is a batch by itself.
        max_waiting: rows that may wait.
        observe: is told the rows of each batch.
    """

    def __init__(self, max_batch_size: int, max_waiting: int, observe: Callable[[int], None] = lambda size: None):
        self.max_batch_size, self.max_waiting, self.observe = max_batch_size, max_waiting, observe
        self.waiting_rows = 0
        self._waiting: deque[Job] = deque()
        self._arrival = asyncio.Event()
        # One thread: torch spreads a batch over the cores by itself, and tokenizers are not made to be shared.
        self._thread = ThreadPoolExecutor(1, "scoring")
        self._task = asyncio.create_task(self._work())

    async def submit(self, run: Run, items: list[Any], size: int | None = None) -> list[Any]:
        """The results of `run(items)`, computed together with other jobs of this `run`.

        Args:
            run: takes the items of several jobs at once, and gives as many results.
            items: of this job.
            size: rows, if these are not the items.

        Raises:
            QueueFullError: too many rows wait already.
            CancelledError: nobody wants the results any more; if the job still waits, it is not computed.
            Exception: whatever `run` raises for these items alone.
        """
        job = Job(run, items, len(items) if size is None else size)
        if self.waiting_rows + job.size > self.max_waiting:
            raise QueueFullError
        self._waiting.append(job)
        self.waiting_rows += job.size
        self._arrival.set()
        try:
            return await job.done
        except asyncio.CancelledError:
            if job in self._waiting:
                self._waiting.remove(job)
                self.waiting_rows -= job.size
            raise

    @property
    def is_alive(self) -> bool:
        return not self._task.done()

    def close(self) -> None:
        self._task.cancel()
        self._thread.shutdown(wait=False)

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = [job for job in await self._next_batch() if not job.done.done()]  # but those that were cancelled
            if not batch:
                continue
            outcomes = await loop.run_in_executor(self._thread, _outcomes, batch)
            self.observe(sum(job.size for job in batch))
            for job, outcome in zip(batch, outcomes, strict=True):
                if job.done.done():  # cancelled
                    continue
                if isinstance(outcome, Exception):
                    job.done.set_exception(outcome)
                else:
                    job.done.set_result(outcome)

    async def _next_batch(self) -> list[Job]:
        """The job that waits longest, and those behind it that go with it."""
        while not self._waiting:
            self._arrival.clear()
            await self._arrival.wait()
        batch = [self._waiting.popleft()]
        size = batch[0].size
        while self._waiting:
            job = self._waiting[0]
            if job.run is not batch[0].run or size + job.size > self.max_batch_size:
                break
            batch.append(self._waiting.popleft())
            size += job.size
        self.waiting_rows -= size
        return batch


def _outcomes(jobs: list[Job]) -> list[list[Any] | Exception]:
    """The results of each job, or its own error: if a batch fails, its halves are tried."""
    try:
        results = list(jobs[0].run([item for job in jobs for item in job.items]))
    except BaseException as error:  # a panic of Rust's is no Exception, and no future takes a StopIteration
        if len(jobs) == 1:
            if isinstance(error, Exception) and not isinstance(error, StopIteration):
                return [error]
            return [RuntimeError(repr(error))]
        half = len(jobs) // 2
        return _outcomes(jobs[:half]) + _outcomes(jobs[half:])
    outcomes: list[list[Any] | Exception] = []
    for job in jobs:
        outcomes.append(results[: len(job.items)])
        results = results[len(job.items) :]
    return outcomes
