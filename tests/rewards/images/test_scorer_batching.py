"""The batcher: what runs together, in which order, and what happens to errors and cancelled items."""

import asyncio
import time

import pytest

from maskgrpo_plugin.rewards.images.batching import Batcher


def make(run, max_batch=4, max_wait_s=0.02, concurrency=1):
    return Batcher(run, max_batch=max_batch, max_wait_s=max_wait_s, concurrency=concurrency)


def test_items_that_come_together_run_together_in_order():
    batches = []

    async def run(items):
        batches.append(items)
        return [item * 10 for item in items]

    async def main():
        batcher = make(run)
        return await asyncio.gather(*(batcher.submit(n) for n in range(10)))

    assert asyncio.run(main()) == [n * 10 for n in range(10)]
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_items_that_come_while_a_batch_runs_share_the_next():
    batches = []

    async def main():
        started, go_on = asyncio.Event(), asyncio.Event()

        async def run(items):
            batches.append(items)
            started.set()
            await go_on.wait()
            return items

        batcher = make(run, max_wait_s=0)
        first = asyncio.create_task(batcher.submit(0))
        await started.wait()
        rest = []
        for n in range(1, 4):
            rest.append(asyncio.create_task(batcher.submit(n)))
            await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(first, *rest)

    asyncio.run(main())
    assert batches == [[0], [1, 2, 3]]


def test_a_lonely_item_waits_no_longer_than_asked():
    async def run(items):
        return items

    async def main():
        start = time.monotonic()
        await make(run, max_wait_s=0.05).submit(1)
        return time.monotonic() - start

    assert 0.04 < asyncio.run(main()) < 5


def test_no_more_batches_at_once_than_asked():
    running, most = 0, 0

    async def run(items):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1
        return items

    async def main(concurrency):
        nonlocal most
        most = 0
        batcher = make(run, max_batch=1, concurrency=concurrency)
        await asyncio.gather(*(batcher.submit(n) for n in range(8)))
        return most

    assert asyncio.run(main(1)) == 1
    assert asyncio.run(main(3)) == 3


def test_an_error_reaches_its_batch_and_the_next_batch_runs():
    async def run(items):
        if 0 in items:
            raise RuntimeError("zero")
        return items

    async def main():
        batcher = make(run, max_batch=2)
        return await asyncio.gather(*(batcher.submit(n) for n in range(4)), return_exceptions=True)

    found = asyncio.run(main())
    assert [type(result) for result in found] == [RuntimeError, RuntimeError, int, int]


def test_a_wrong_number_of_results_is_an_error():
    async def run(items):
        return items[:-1]

    async def main():
        batcher = make(run)
        await asyncio.gather(batcher.submit(1), batcher.submit(2))

    with pytest.raises(RuntimeError, match="1 results for a batch of 2"):
        asyncio.run(main())


def test_cancelled_items_are_left_out():
    batches = []

    async def run(items):
        batches.append(items)
        return items

    async def main():
        batcher = make(run, max_wait_s=0.05)
        tasks = [asyncio.create_task(batcher.submit(n)) for n in range(3)]
        await asyncio.sleep(0.01)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(main())
    assert batches == [[0, 2]]
