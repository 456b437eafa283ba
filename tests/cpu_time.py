"""CPU seconds of a call, for tests that hold hostile input against the cost of reading it naively."""

import gc
import time


def least_cpu_seconds(call, enough: float, tries: int = 5) -> float:
    """CPU seconds of `call()`, the least of at most `tries`; the first that takes less than `enough` is taken.

    The collector rests meanwhile: one of its passes over a large process takes as long as what is measured.
    """
    least = float("inf")
    for _ in range(tries):
        was_on = gc.isenabled()
        gc.disable()
        try:
            started = time.process_time()
            call()
            least = min(least, time.process_time() - started)
        finally:
            if was_on:
                gc.enable()
        if least < enough:
            break
    return least
