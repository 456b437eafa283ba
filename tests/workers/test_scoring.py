"""What actor and server are compared on: the first pass of a step, as plain data."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from maskgrpo_plugin.diffusion.estimators.plan import StepPlan
from maskgrpo_plugin.workers.scoring import first_pass

MASK = 99


def test_the_places_asked_about_are_masked_and_the_targets_are_what_was_written_there():
    batch = ranks.make_batch(6)
    plan = StepPlan("maskgrpo", {"mu": 2, "gamma": 0.6}, seed=1, step=3, stop_token_ids=(2,))
    canvases = first_pass(ranks.to_tensordict(batch, range(6)), plan, MASK)
    rows = [p + r for p, r in zip(batch["prompts"], batch["responses"], strict=True)]
    assert canvases.lengths == [len(row) for row in rows]
    true = torch.tensor([token for row in rows for token in row])
    ids, places = torch.tensor(canvases.ids), torch.tensor(canvases.places)
    assert len(places) > 10 and (ids[places] == MASK).all()
    assert torch.equal(true[places], torch.tensor(canvases.targets))
    hidden = ids == MASK
    assert torch.equal(ids[~hidden], true[~hidden])
    tails = sum(len(r) - r.index(2) - 1 for r in batch["responses"] if 2 in r)
    assert int(hidden.sum()) == len(places) + tails  # the tail is hidden and not asked about
