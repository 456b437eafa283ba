"""Batches of supervised training: every row once an epoch, fixed numbers of each source, weights that make the mean."""

import pytest

from maskgrpo_plugin.trainer.sft_batches import BatchOrder, divide


def test_an_epoch_has_every_row_once_and_the_next_one_another_order():
    order = BatchOrder(rows=(12,), counts=(4,), weights=(1.0,), seed=3)
    epochs = [[slot.row for step in range(3 * e + 1, 3 * e + 4) for slot in order.batch(step)] for e in range(2)]
    assert order.steps_per_epoch == 3 and epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(12))
    assert order.batch(5) == order.batch(5) != order.batch(4)


def test_rows_that_fill_no_batch_come_in_another_epoch():
    order = BatchOrder(rows=(5,), counts=(2,), weights=(1.0,), seed=0)
    assert order.steps_per_epoch == 2
    assert {slot.row for step in range(1, 21) for slot in order.batch(step)} == set(range(5))


def test_each_source_keeps_its_number_of_rows_and_the_loss_is_the_weighted_sum_of_their_means():
    order = BatchOrder(rows=(6, 4), counts=(2, 1), weights=(1.0, 0.1), seed=0)
    slots = order.batch(1)
    assert [slot.source for slot in slots] == [0, 0, 1]
    assert [slot.weight for slot in slots] == pytest.approx([1.5, 1.5, 0.3])
    losses = [2.0, 4.0, 7.0]
    mean = sum(slot.weight * loss for slot, loss in zip(slots, losses, strict=True)) / 3
    assert mean == pytest.approx(1.0 * 3.0 + 0.1 * 7.0)
    assert order.steps_per_epoch == 4  # of the source that takes longest


def test_keys_spread_each_source_over_the_whole_range_and_are_all_different():
    order = BatchOrder(rows=(20, 20), counts=(6, 2), weights=(1.0, 1.0), seed=0)
    keys = [slot.key for slot in order.batch(1)]
    assert len(set(keys)) == 8
    assert [key % 8 for key in keys] == [0, 1, 2, 4, 5, 6, 0, 4]


@pytest.mark.parametrize(
    ("size", "shares", "expected"),
    [(10, [1, 1, 2], [3, 2, 5]), (14, [6, 2, 6], [6, 2, 6]), (3, [100, 1, 1], [1, 1, 1]), (7, [1.0], [7])],
)
def test_a_batch_is_divided_by_shares_with_a_row_for_each(size, shares, expected):
    assert divide(size, shares) == expected


def test_fewer_rows_than_sources_are_refused():
    with pytest.raises(ValueError, match="1 rows for 2 sources"):
        divide(1, [1, 1])
