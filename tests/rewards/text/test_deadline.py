"""Calls under a time limit: what hangs is counted, named and bounded."""

import asyncio
import functools
import threading

import pytest

from maskgrpo_plugin.rewards.text.deadline import DeadlineThreads, TooManyHanging, describe


def scorer(task, completion, *, released):
    released.wait(60)
    return completion


def threads_named_reward():
    return sum(thread.name == "reward" for thread in threading.enumerate())


def test_hanging_calls_do_not_pile_up_and_the_message_names_them():
    released = threading.Event()
    before = threads_named_reward()

    async def go():
        threads = DeadlineThreads(0.05, workers=2, most_hanging=4)
        call = functools.partial(scorer, "slow_task", "text", released=released)
        results = await asyncio.gather(*(threads.call(call) for _ in range(40)), return_exceptions=True)
        running = threads_named_reward() - before
        with pytest.raises(TooManyHanging) as caught:  # at once: nothing is released before
            await threads.call(lambda: 5, name="another")
        assert sum(threads.hanging().values()) == running
        released.set()
        while threads.hanging():
            await asyncio.sleep(0.01)
        return results, running, str(caught.value), await threads.call(lambda: 5)

    results, running, message, value = asyncio.run(go())
    assert 4 <= running <= 6 and value == 5
    assert all(isinstance(result, TimeoutError) for result in results)
    assert sum(isinstance(result, TooManyHanging) for result in results) == 40 - running
    assert message.startswith("another was not called: ") and f"{running} of scorer('slow_task')" in message
    assert "reward.timeout_s" in message


def test_calls_that_end_in_time_or_raise_are_not_counted():
    async def go():
        threads = DeadlineThreads(30, workers=4, most_hanging=4)

        def fail():
            raise KeyError("x")

        results = await asyncio.gather(
            *(threads.call(fail if n % 2 else (lambda: "done")) for n in range(20)), return_exceptions=True
        )
        return results, threads.hanging()

    results, hanging = asyncio.run(go())
    assert results[::2] == ["done"] * 10 and all(isinstance(error, KeyError) for error in results[1::2])
    assert not hanging


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (functools.partial(scorer, "gsm8k", "text"), "scorer('gsm8k')"),
        (functools.partial(functools.partial(scorer, released=None), task="math"), "scorer('math')"),
        (functools.partial(scorer, released=None), "scorer"),
        (DeadlineThreads, "DeadlineThreads"),
    ],
)
def test_the_name_of_a_call(function, name):
    assert describe(function) == name
