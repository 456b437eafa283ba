"""Completions that are lost and rewards that fail: counted, asked for again, and too many of them end the run."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError

from maskgrpo_plugin.config import MaskGRPOAlgoConfig
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards.failures import resolve_failed_rewards
from maskgrpo_plugin.trainer.accounting import Ledger, LostSamples
from maskgrpo_plugin.trainer.advantages import group_advantages
from maskgrpo_plugin.workers import agent_loop_manager
from maskgrpo_plugin.workers.agent_loop_manager import AccountingWorker, Loss


def test_a_step_may_miss_a_share_of_its_completions_and_no_more():
    ledger = Ledger(0.1, 20)
    ledger.add([Loss(False, True, "OutOfMemoryError: no"), Loss(False, False, "KeyError: 'ground_truth'")])
    assert ledger.lost == 1
    ledger.check("step 3", failed_rewards=1)
    with pytest.raises(LostSamples) as raised:
        ledger.check("step 3", failed_rewards=2)
    message = str(raised.value)
    assert message.startswith("step 3: 1 of 20 completions are lost and 2 have no reward")
    assert "algorithm.max_lost_share=0.1" in message and "OutOfMemoryError: no" in message


def test_the_largest_share_is_checked():
    assert MaskGRPOAlgoConfig(max_lost_share=1).max_lost_share == 1
    with pytest.raises(OptionError, match=r"algorithm\.max_lost_share"):
        MaskGRPOAlgoConfig(max_lost_share=1.5)


@pytest.mark.parametrize("policy", ["drop_sample", "mean_of_group"])
def test_failed_samples_have_no_part_in_their_groups_mean_and_deviation(policy):
    """As the trainer does: samples whose reward failed get a group of their own."""
    rewards = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    failed = torch.tensor([0, 0, 0, 1, 0, 0, 1, 0, 1]).bool()
    groups = ["a"] * 4 + ["b"] * 3 + ["c"] * 2
    resolved, _ = resolve_failed_rewards(rewards, failed, groups, policy)
    apart = [f"{g}-{n}" if out else g for n, (g, out) in enumerate(zip(groups, failed, strict=True))]
    advantages = group_advantages(resolved, np.array(apart))
    assert advantages[:4].tolist() == [0.0] * 4  # equal kept rewards
    good = torch.tensor([1.0, 0.0])
    expected = (good - good.mean()) / (good.std() + 1e-5)
    torch.testing.assert_close(advantages[4:7], torch.cat([expected, torch.zeros(1)]))
    assert advantages[7:].tolist() == [0.0, 0.0]  # one kept member


class Base:
    """Stands for verl's worker under the accounting one."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def fail_or(self, value):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return value


@pytest.fixture
def worker(monkeypatch):
    monkeypatch.setattr(agent_loop_manager, "WAIT_S", 0.0)

    def make(*errors, handles=()):
        base = Base(*errors)

        class Parent:
            async def _run_agent_loop(self, sampling_params, trajectory, **kwargs):
                return base.fail_or("done")

            async def _compute_score(self, outputs, kwargs):
                base.fail_or(None)
                outputs[-1].reward_score = 1.0
                outputs[-1].extra_fields["reward_extra_info"] = {"acc": 1.0}

        made = object.__new__(AccountingWorker)
        made.losses, made.shown, made.most_shown = [], [], 0
        made.reward_loop_worker_handles = list(handles) or None
        monkeypatch.setattr(agent_loop_manager._Worker, "_run_agent_loop", Parent._run_agent_loop)
        monkeypatch.setattr(agent_loop_manager._Worker, "_compute_score", Parent._compute_score)
        return made, base

    return make


def complete(made, validate=False):
    return asyncio.run(made._run_agent_loop({}, {"validate": validate}))


def score(made):
    output = SimpleNamespace(reward_score=None, extra_fields={})
    asyncio.run(made._compute_score([output], {"index": 5}))
    return output


def test_a_completion_that_a_machine_lost_is_asked_for_again(worker):
    made, base = worker(RuntimeError("CUDA out of memory"), ActorUnavailableError("restarting", b"0" * 16))
    assert complete(made) == "done" and base.calls == 3 and made.pop_losses() == []


def test_a_completion_that_fails_every_time_is_a_loss_with_its_cause(worker):
    made, base = worker(*[RuntimeError("stack of the other process\nCUDA out of memory")] * 3)
    with pytest.raises(RuntimeError):
        complete(made, validate=True)
    assert base.calls == 3
    assert made.pop_losses() == [Loss(True, True, "RuntimeError: CUDA out of memory")] and made.pop_losses() == []


def test_a_mistake_in_the_data_is_not_tried_again(worker):
    made, base = worker(TypeError("int() argument must be a number, not 'NoneType'"))
    with pytest.raises(TypeError):
        complete(made)
    assert base.calls == 1 and len(made.pop_losses()) == 1


def test_whatever_a_reward_worker_raises_is_a_failed_reward(worker):
    made, _ = worker(KeyError("ground_truth"))
    output = score(made)
    assert output.reward_score == 0.0 and output.extra_fields["reward_extra_info"]["reward_failed"] == 1.0
    assert made.pop_losses() == [Loss(False, False, "KeyError: 'ground_truth'")]


def test_a_reward_worker_that_died_for_good_is_asked_no_more(worker):
    handles = [SimpleNamespace(_actor_id=bytes([n] * 16)) for n in range(2)]
    died = ActorDiedError()
    died.actor_id = handles[0]._actor_id.hex()
    made, base = worker(died, handles=handles)
    output = score(made)
    assert output.reward_score == 1.0 and base.calls == 2
    assert made.reward_loop_worker_handles == handles[1:]
    made, _ = worker(died, handles=handles[:1])
    assert score(made).extra_fields["reward_extra_info"]["reward_failed"] == 1.0
    assert "every reward worker" in made.pop_losses()[0].cause
