"""The request queue: full batches, bounded waits, separate kinds, requests that join, errors and aborts."""

import asyncio
import threading
import time

import pytest

from maskgrpo_plugin.workers.rollout.request_queue import BatchKind, RequestQueue

KIND, OTHER = BatchKind(0.0), BatchKind(1.0)


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 20))


def queue_of(sizes, **options):
    def answer(batch):
        sizes.append([request.kind for request in batch.requests])
        for request in batch.requests:
            batch.answer(request, request.prompt_ids[0] * 10)

    return RequestQueue(answer, **({"max_batch": 4, "max_wait_s": 0.2, "quiet_s": 0.05} | options))


async def submit_all(queue, numbers, kind=KIND):
    return await asyncio.gather(*[queue.submit([n], seed=n, kind=kind) for n in numbers])


def test_each_request_gets_its_own_answer_in_batches_of_at_most_the_maximum():
    sizes = []

    async def go():
        return await submit_all(queue_of(sizes), range(10))

    assert run(go()) == [n * 10 for n in range(10)]
    assert [len(batch) for batch in sizes] == [4, 4, 2]


def test_a_lone_request_waits_no_longer_than_the_quiet_time():
    async def go():
        started = time.monotonic()
        await queue_of([], max_wait_s=5.0).submit([1], seed=0, kind=KIND)
        return time.monotonic() - started

    assert 0.04 < run(go()) < 2.0


def test_steady_arrivals_end_at_the_longest_wait():
    sizes = []

    async def go():
        queue = queue_of(sizes, max_batch=1000, max_wait_s=0.2, quiet_s=10.0)
        tasks = []
        for n in range(30):
            tasks.append(asyncio.create_task(queue.submit([n], seed=n, kind=KIND)))
            await asyncio.sleep(0.02)
        await asyncio.gather(*tasks)

    run(go())
    assert len(sizes) >= 2


def test_kinds_do_not_share_a_batch():
    sizes = []

    async def go():
        queue = queue_of(sizes)
        await asyncio.gather(submit_all(queue, range(3), KIND), submit_all(queue, range(3), OTHER))

    run(go())
    assert all(len(set(batch)) == 1 for batch in sizes)
    assert sum(len(batch) for batch in sizes) == 6


def test_one_bad_request_fails_alone():
    sizes = []

    def answer(batch):
        sizes.append(len(batch.requests))
        if any(request.prompt_ids == [2] for request in batch.requests):
            raise RuntimeError("a token that does not exist")
        for request in batch.requests:
            batch.answer(request, request.prompt_ids[0] * 10)

    async def go():
        queue = RequestQueue(answer, max_batch=4, max_wait_s=0.05)
        tasks = [queue.submit([n], seed=n, kind=KIND) for n in range(4)]
        return await asyncio.gather(*tasks, return_exceptions=True), await submit_all(queue, [7])

    answers, later = run(go())
    assert [str(answer) for answer in answers] == ["0", "10", "a token that does not exist", "30"]
    assert sizes == [4, 1, 1, 1, 1, 1] and later == [70]


def test_a_batch_that_did_not_fit_the_memory_is_answered_one_by_one():
    def answer(batch):
        if len(batch.requests) > 1:
            raise RuntimeError("out of memory")
        batch.answer(batch.requests[0], batch.requests[0].prompt_ids[0] * 10)

    async def go():
        return await submit_all(RequestQueue(answer, max_batch=3, max_wait_s=0.05), range(3))

    assert run(go()) == [0, 10, 20]


def test_requests_and_control_calls_may_come_from_different_event_loops():
    """As Ray gives each concurrency group of an actor a loop of its own."""
    queue, answers = queue_of([]), []
    run(queue.pause())
    asking = threading.Thread(target=lambda: answers.append(run(queue.submit([4], seed=0, kind=KIND))))
    asking.start()
    time.sleep(0.2)
    assert not answers
    queue.resume()
    asking.join(10)
    assert answers == [40]


def test_pause_holds_requests_back_until_resume():
    async def go():
        queue = queue_of([])
        await queue.pause()
        task = asyncio.create_task(queue.submit([1], seed=0, kind=KIND))
        await asyncio.sleep(0.3)
        assert not task.done()
        queue.resume()
        return await task

    assert run(go()) == 10


class Joining:
    """Answers a batch's requests one after the other, oldest first, and fills their places from the queue; `pass_on`
    runs before each.
    """

    def __init__(self, pass_on=lambda number: None, places=2):
        self.pass_on, self.places, self.batches = pass_on, places, []

    def __call__(self, batch):
        here, order = list(batch.requests), []
        self.batches.append(order)
        while here:
            order.append(here[0].prompt_ids[0])
            self.pass_on(order[-1])
            batch.answer(here[0], order[-1] * 10)
            here = here[1:]
            here += batch.take(self.places - len(here))


def test_waiting_requests_join_a_running_batch():
    serve = Joining()

    async def go():
        queue = RequestQueue(serve, max_batch=2, max_wait_s=0.05)
        answers = await submit_all(queue, range(7))
        return answers, queue.pop_metrics()["requests"]

    assert run(go()) == ([n * 10 for n in range(7)], 7)
    assert serve.batches == [list(range(7))]


def test_no_request_joins_once_another_kind_has_waited_longest():
    serve = Joining()

    async def go():
        queue = RequestQueue(serve, max_batch=2, max_wait_s=0.05)
        await asyncio.gather(
            submit_all(queue, [0, 1, 2], KIND), submit_all(queue, [10, 11], OTHER), submit_all(queue, [3], KIND)
        )

    run(go())
    assert serve.batches == [[0, 1, 2], [10, 11], [3]]


def test_a_pause_lets_the_running_requests_end_and_no_other_join():
    started, go_on = threading.Event(), threading.Event()

    def hold(number):
        started.set()
        go_on.wait(10)

    serve = Joining(hold)

    async def go():
        queue = RequestQueue(serve, max_batch=2, max_wait_s=0.05)
        tasks = [asyncio.create_task(queue.submit([n], seed=n, kind=KIND)) for n in range(5)]
        await asyncio.to_thread(started.wait)
        pausing = asyncio.create_task(queue.pause())
        await asyncio.sleep(0.05)
        assert not pausing.done()
        go_on.set()
        await pausing
        await asyncio.sleep(0.05)
        done = [task.done() for task in tasks]
        queue.resume()
        return done, await asyncio.gather(*tasks)

    done, answers = run(go())
    assert done == [True, True, False, False, False]
    assert answers == [n * 10 for n in range(5)]


def test_an_error_reaches_the_request_that_joined_and_caused_it_alone():
    def fail(number):
        if number == 3:
            raise RuntimeError("out of memory")

    async def go():
        queue = RequestQueue(Joining(fail), max_batch=2, max_wait_s=0.05)
        tasks = [asyncio.create_task(queue.submit([n], seed=n, kind=KIND)) for n in range(6)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = run(go())
    assert answers[:3] + answers[4:] == [0, 10, 20, 40, 50]
    assert str(answers[3]) == "out of memory"


def test_a_request_that_a_batch_forgot_is_an_error():
    async def go():
        return await RequestQueue(lambda batch: None, max_batch=2, max_wait_s=0.01).submit([1], seed=0, kind=KIND)

    with pytest.raises(RuntimeError, match="without this answer"):
        run(go())


def test_metrics_tell_how_full_batches_were():
    async def go():
        queue = queue_of([])
        await submit_all(queue, range(6))
        queue.metrics.tokens, queue.metrics.row_model_calls, queue.metrics.model_calls = 60, 30, 10
        return queue.pop_metrics(), queue.pop_metrics()

    first, second = run(go())
    assert first["batch_fill"] == 30 / (10 * 4)
    assert first["requests"] == 6
    assert first["model_calls_per_token"] == 0.5
    assert second["requests"] == 0
