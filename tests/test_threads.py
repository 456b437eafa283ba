"""Work of threads: results in order, errors in their place, few items ahead."""

import threading

import pytest

from maskgrpo_plugin.threads import AHEAD, map_in_order


def test_results_come_in_the_order_of_the_items():
    gate = threading.Event()

    def double(n):
        if n == 0:
            gate.wait(60)  # until a later item is done
        else:
            gate.set()
        return 2 * n

    assert list(map_in_order(double, range(50), 2)) == list(range(0, 100, 2))


def test_an_error_is_raised_where_its_result_would_be():
    results = map_in_order(lambda n: 6 // (3 - n), range(5), 1)
    assert [next(results) for _ in range(3)] == [2, 3, 6]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_items_are_taken_a_few_ahead():
    taken = []
    results = map_in_order(lambda n: n, (taken.append(n) or n for n in range(1000)), 2)
    assert next(results) == 0 and len(taken) == 2 * AHEAD + 1
    results.close()
