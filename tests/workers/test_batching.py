"""The request queue: full batches, bounded waits, separate kinds, errors and aborts."""

import asyncio
import time

import pytest

from maskgrpo_plugin.workers.rollout.batching import DynamicBatcher


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def batcher(sizes, **options):
    def answer(batch):
        sizes.append([request.kind for request in batch])
        return [request.prompt_ids[0] * 10 for request in batch]

    return DynamicBatcher(answer, **({"max_batch": 4, "max_wait_s": 0.2, "quiet_s": 0.05} | options))


async def submit_all(queue, numbers, kind="k"):
    return await asyncio.gather(*[queue.submit([n], seed=n, kind=kind) for n in numbers])


def test_each_request_gets_its_own_answer_in_batches_of_at_most_the_maximum():
    sizes = []

    async def go():
        return await submit_all(batcher(sizes), range(10))

    assert run(go()) == [n * 10 for n in range(10)]
    assert [len(batch) for batch in sizes] == [4, 4, 2]


def test_a_lone_request_waits_no_longer_than_the_quiet_time():
    async def go():
        started = time.monotonic()
        await batcher([], max_wait_s=5.0).submit([1], seed=0, kind="k")
        return time.monotonic() - started

    assert 0.04 < run(go()) < 2.0


def test_steady_arrivals_end_at_the_longest_wait():
    sizes = []

    async def go():
        queue = batcher(sizes, max_batch=1000, max_wait_s=0.2, quiet_s=10.0)
        tasks = []
        for n in range(30):
            tasks.append(asyncio.create_task(queue.submit([n], seed=n, kind="k")))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)

    run(go())
    assert len(sizes) >= 2


def test_kinds_do_not_share_a_batch():
    sizes = []

    async def go():
        queue = batcher(sizes)
        await asyncio.gather(submit_all(queue, range(3), "a"), submit_all(queue, range(3), "b"))

    run(go())
    assert all(len(set(batch)) == 1 for batch in sizes)
    assert sum(len(batch) for batch in sizes) == 6


def test_an_error_reaches_its_own_batch_and_the_queue_goes_on():
    calls = []

    def answer(batch):
        calls.append(len(batch))
        if len(calls) == 1:
            raise RuntimeError("out of memory")
        return [0 for _ in batch]

    async def go():
        queue = DynamicBatcher(answer, max_batch=2, max_wait_s=0.05)
        with pytest.raises(RuntimeError, match="out of memory"):
            await submit_all(queue, range(2))
        return await submit_all(queue, range(2))

    assert run(go()) == [0, 0]


def test_pause_holds_requests_back_until_resume():
    async def go():
        queue = batcher([])
        await queue.pause()
        task = asyncio.create_task(queue.submit([1], seed=0, kind="k"))
        await asyncio.sleep(0.3)
        assert not task.done()
        queue.resume()
        return await task

    assert run(go()) == 10


def test_metrics_tell_how_full_batches_were():
    async def go():
        queue = batcher([])
        await submit_all(queue, range(6))
        queue.metrics.tokens, queue.metrics.row_model_calls = 60, 30
        return queue.pop_metrics(), queue.pop_metrics()

    first, second = run(go())
    assert first["batch_fill"] == 6 / 8
    assert first["model_calls_per_token"] == 0.5
    assert second["requests"] == 0
