"""Checkpoints that `trainer.max_actor_ckpt_to_keep` removes: none before the next one is wholly written."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import ranks


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [([1], [1]), ([1, 2], [2]), ([2, 3], [3])]),
        (2, [([1], [1]), ([1, 2], [1, 2]), ([2, 3], [2, 3])]),
    ],
)
def test_an_old_checkpoint_stays_until_the_next_one_is_written(tiny_run, tmp_path, most, expected):
    options = {"root": str(tmp_path / "checkpoints"), "most": most}
    (found,) = ranks.run_ranks(1, tiny_run, [[]], {}, tmp_path, ranks.saved_checkpoints, **options)[0]
    assert found == expected
