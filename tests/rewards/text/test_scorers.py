"""Scorers and the reward registry: extraction, shaping, agreement with the published parser, and the reward manager."""

import asyncio
import threading

import pytest
import torch
from omegaconf import OmegaConf

from maskgrpo_plugin import rewards
from maskgrpo_plugin.rewards.text.deadline import DeadlineThreads
from maskgrpo_plugin.rewards.text.scorers.gsm8k import extract_answer, parse_ground_truth

SAMPLES = {
    "countdown": ([[2, 3], 5], {}),
    "sudoku": ("4123231432411432", {"puzzle": "4020231402001000"}),
    "code": (["assert f(1) == 1"], {}),
}


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("<answer>18</answer>", "18"),
        ("<answer>\n\\boxed{18}\n</answer>", "18"),
        ("so \\boxed{12} no, \\boxed{13}", "13"),
        ("4 + 5 = 9\n#### 9", "9"),
        ("The total is 1,234,567.", "1234567"),
        ("She pays $18.00.", "18"),
        ("It costs \\$1{,}500.50", "1500.50"),
        ("\\boxed{\\$2\\,500}", "2500"),
        ("\\boxed{82^\\circ}", "82"),
        ("\\boxed{3\\text{ m}^2}", "3"),
        ("\\boxed{x = 5}", "5"),
        ("<answer>3 + 4 = 7 apples</answer>", "7"),
        ("<answer>18 dollars</answer>", "18"),
        ("<answer>10%</answer>", "10"),
        ("<answer>-$5</answer>", "-5"),
        ("<answer>−5</answer>", "-5"),
        ("the range 3-5", "5"),
        ("\\boxed{}, so <answer>\\boxed{243}", "243"),
        ("\\boxed{246\\text{ feet", "246"),
        ("<answer>none</answer> but 7", "7"),
        ("<answer>5</answer><|eot_id|>\\boxed{0}", "5"),
        ("5<|endoftext|>6", "5"),
    ],
)
def test_final_answer_is_found(completion, number):
    assert extract_answer(completion) == parse_ground_truth(number)


@pytest.mark.parametrize("completion", ["", "no number here", "<answer></answer>", "<|eot_id|>5", "\\boxed{...}"])
def test_no_answer(completion):
    assert extract_answer(completion) is None
    assert rewards.score("gsm8k", completion, "5")["acc"] == 0.0


@pytest.mark.parametrize("truth", ["72", 72, 72.0, "72.0", "48/2 = <<48/2=24>>24\n#### 72", "$72"])
def test_ground_truth_as_number_or_full_answer(truth):
    assert rewards.score("gsm8k", "72", truth)["acc"] == 1.0


@pytest.mark.parametrize("truth", ["", "none", "#### ", "1 or 2", None])
def test_ground_truth_without_a_number_is_refused(truth):
    with pytest.raises(ValueError, match="ground_truth"):
        rewards.score("gsm8k", "72", truth)


@pytest.mark.parametrize(
    ("completion", "parts"),
    [
        ("<answer>18</answer>", (0.5, 0.5, 2.0)),
        ("<answer>18.0</answer>", (0.5, 0.5, 2.0)),
        ("\\boxed{17}", (0.5, 0.5, 0.0)),
        ("\\boxed{17.5}", (0.5, 0.0, 0.0)),
        ("it is 18", (0.0, 0.5, 2.0)),
        ("<answer>18", (0.0, 0.5, 2.0)),
        ("<answer>eighteen</answer>", (0.5, 0.0, 0.0)),
        ("", (0.0, 0.0, 0.0)),
    ],
)
def test_gsm8k_components(completion, parts):
    result = rewards.score("gsm8k", completion, "18")
    assert (result["format"], result["integer"], result["correct"]) == parts
    assert result["score"] == sum(parts)
    assert result["acc"] == (parts[2] > 0)


@pytest.mark.parametrize(
    ("completion", "acc"),
    [
        ("57", 1),
        (" 5 7 ", 1),
        ("57<|endoftext|>12", 1),
        ("57<|eot_id|>", 1),
        ("057", 0),
        ("57.", 0),
        ("", 0),
        ("58", 0),
    ],
)
def test_arithmetic(completion, acc):
    assert rewards.score("arithmetic", completion, "57") == {"score": acc, "acc": acc}


def test_arithmetic_refuses_a_ground_truth_that_is_no_integer():
    with pytest.raises(ValueError, match="integer"):
        rewards.score("arithmetic", "57", "57.5")


def test_weights_multiply_components_and_their_sum_but_not_acc():
    plain = rewards.score("gsm8k", "<answer>18</answer>", "18")
    weighted = rewards.score("gsm8k", "<answer>18</answer>", "18", weights={"format": 0, "correct": 0.5})
    assert weighted == {**plain, "format": 0.0, "correct": 1.0, "score": 1.5}
    assert rewards.score("gsm8k", "<answer>18</answer>", "18", weights={}) == plain


@pytest.mark.parametrize(
    ("task", "weights", "message"),
    [
        ("gsm8k", {"style": 1.0}, "'style'.*format, integer, correct"),
        ("gsm8k", {"acc": 1.0}, "'acc'"),
        ("arithmetic", {"correct": 1.0}, "none"),
        ("gsm8k", {"format": float("nan")}, "finite"),
        ("gsm8k", {"format": "much"}, "finite"),
    ],
)
def test_weights_of_unknown_components_are_refused(task, weights, message):
    with pytest.raises(ValueError, match=message):
        rewards.score(task, "18", "18", weights=weights)


def test_unknown_task_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'chess'.*arithmetic, code, countdown, gsm8k, math, short_answer, sudoku"):
        rewards.score("chess", "e4", "e4")


def test_extra_keys_that_a_task_does_not_take_are_ignored():
    assert rewards.score("arithmetic", "57", "57", index=3, split="train")["acc"] == 1


@pytest.mark.parametrize("task", rewards.tasks())
def test_declared_keys_are_those_returned(task):
    ground_truth, extra = SAMPLES.get(task, ("5", {}))
    result = rewards.score(task, "5", ground_truth, **extra)
    assert set(result) == set(rewards.get_task(task).keys)
    components = rewards.get_task(task).components
    assert not components or result["score"] == sum(result[name] for name in components)


class CharacterTokenizer:
    """One token a character; 0 is padding, 1 <|endoftext|> (eos), 2 <|eot_id|>."""

    eos_token_id = 1

    def get_vocab(self):
        return {"<|endoftext|>": 1, "<|eot_id|>": 2}

    def decode(self, ids, skip_special_tokens=True):
        return "".join(chr(i) for i in ids if i > 2)

    def encode(self, text):
        return [ord(character) for character in text]


NO_FAILURE = {"reward_failed": 0.0, "reward_timed_out": 0.0, "reward_sandbox_lost": 0.0}


def make_manager(compute_score=None, config=None):
    manager = pytest.importorskip("maskgrpo_plugin.rewards.text.manager")
    return manager.TextRewardManager(config, CharacterTokenizer(), compute_score)


def run(manager, ids, ground_truth="5", data_source="arithmetic", extra_info=None, padding=0):
    import numpy as np
    from verl import DataProto

    responses = torch.tensor([ids + [0] * padding])
    attention = torch.cat([torch.ones(1, 3 + len(ids)), torch.zeros(1, padding)], dim=1).long()
    rows = {
        "data_source": data_source,
        "reward_model": {"ground_truth": ground_truth},
        "extra_info": extra_info,
    }
    data = DataProto.from_dict(
        tensors={"responses": responses, "attention_mask": attention},
        non_tensors={key: np.array([value], dtype=object) for key, value in rows.items()},
    )
    return asyncio.run(manager.run_single(data))


@pytest.mark.parametrize("stop", [1, 2])
def test_manager_cuts_at_either_stop_token(stop):
    ids = [ord("5"), stop, ord("6"), stop]
    result = run(make_manager(), ids, extra_info={"task": "arithmetic", "index": 0}, padding=2)
    assert result["reward_score"] == 1.0
    assert result["reward_extra_info"] == {"score": 1.0, "acc": 1.0} | NO_FAILURE


def test_manager_takes_the_task_from_extra_info_before_the_data_source():
    result = run(make_manager(), [ord("5")], data_source="openai/gsm8k", extra_info={"task": "arithmetic"})
    assert "format" not in result["reward_extra_info"]
    assert "format" in run(make_manager(), [ord("5")], data_source="openai/gsm8k")["reward_extra_info"]


def test_manager_keeps_the_rollout_when_a_scorer_raises(caplog):
    good = run(make_manager(), [ord("5")], data_source="openai/gsm8k")
    bad = run(make_manager(), [ord("5")], ground_truth="none", data_source="openai/gsm8k")
    assert bad["reward_score"] == 0.0
    assert bad["reward_extra_info"]["reward_failed"] == 1.0
    assert bad["reward_extra_info"].keys() == good["reward_extra_info"].keys()
    assert all(
        type(value) is float for value in (*bad["reward_extra_info"].values(), *good["reward_extra_info"].values())
    )
    assert "reward failed" in caplog.text


async def async_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    return {"score": 0.25, "length": len(solution_str), "note": "text"}


def test_manager_uses_a_custom_compute_score_plain_or_async():
    result = run(make_manager(lambda **arguments: 0.5), [ord("5")], extra_info={"task": "arithmetic"})
    assert result == {"reward_score": 0.5, "reward_extra_info": {"acc": 0.5, "score": 0.5} | NO_FAILURE}
    info = run(make_manager(async_score), [ord("5")])["reward_extra_info"]
    assert info == {"acc": 0.25, "score": 0.25, "length": 1.0} | NO_FAILURE


@pytest.mark.parametrize("is_async", [False, True])
def test_manager_passes_over_a_scorer_that_hangs(is_async):
    released = threading.Event()

    def hang(**_):
        released.wait(60)

    async def hang_async(**_):
        await asyncio.sleep(60)

    config = OmegaConf.create({"reward": {"timeout_s": 0.2}})
    info = run(make_manager(hang_async if is_async else hang, config), [ord("5")])["reward_extra_info"]
    released.set()
    assert info["reward_failed"] == info["reward_timed_out"] == 1.0 and info["reward_sandbox_lost"] == 0.0


def test_hung_scorers_leave_room_for_others():
    released = threading.Event()

    async def go():
        threads = DeadlineThreads(0.2, workers=2)
        hung = [threads.call(lambda: released.wait(60)) for _ in range(4)]
        results = await asyncio.gather(*hung, threads.call(lambda: "done"), return_exceptions=True)
        released.set()
        return results

    *hung, last = asyncio.run(go())
    assert all(isinstance(result, TimeoutError) for result in hung) and last == "done"


def test_manager_counts_a_lost_sandbox():
    config = OmegaConf.create(
        {"reward": {"sandbox": {"provider": "sandbox_fusion", "url": "http://127.0.0.1:9/run_code", "retries": 0}}}
    )
    program = list(map(ord, "```python\ndef f():\n    return 1\n```"))
    extra_info = {"task": "code", "index": 0}
    info = run(make_manager(config=config), program, ground_truth='["assert f() == 1"]', extra_info=extra_info)
    assert info["reward_score"] == 0.0
    outcome = {name: info["reward_extra_info"][name] for name in NO_FAILURE}
    assert outcome == {"reward_failed": 1.0, "reward_timed_out": 0.0, "reward_sandbox_lost": 1.0}


def test_manager_keeps_the_key_set_of_a_custom_score_that_turns_nan():
    manager = make_manager(lambda solution_str, **_: {"score": float("nan") if solution_str == "x" else 1.0, "len": 1})
    good, bad = run(manager, [ord("5")]), run(manager, [ord("x")])
    assert bad["reward_score"] == 0.0
    assert bad["reward_extra_info"].keys() == good["reward_extra_info"].keys()
    assert bad["reward_extra_info"]["reward_failed"] == 1.0


def test_manager_falls_back_to_verls_scorer_and_refuses_a_task_nobody_knows():
    result = run(make_manager(), list(map(ord, "Answer: 5")), data_source="math_dapo")
    assert result["reward_extra_info"]["reward_failed"] == 0.0
    assert result["reward_score"] == 1.0
    with pytest.raises(ValueError, match="custom_reward_function"):
        run(make_manager(), [ord("5")], data_source="chess")
    with pytest.raises(ValueError, match="available"):
        run(make_manager(), [ord("5")], extra_info={"task": "chess"})


def test_manager_takes_the_weights_of_a_task_from_the_config():
    config = OmegaConf.create({"reward": {"weights": {"gsm8k": {"format": 0, "integer": 2.0}}}})
    answer = list(map(ord, "<answer>5</answer>"))
    info = run(make_manager(config=config), answer, data_source="openai/gsm8k")["reward_extra_info"]
    assert (info["score"], info["format"], info["integer"], info["correct"]) == (3.0, 0.0, 1.0, 2.0)
    assert run(make_manager(config=config), [ord("5")])["reward_score"] == 1.0


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"weights": {"gsm8k": {"style": 1.0}}}, r"reward\.weights\.gsm8k.*'style'.*format"),
        ({"weights": {"chess": {"format": 1.0}}}, r"reward\.weights\.chess.*unknown task"),
        ({"weights": {"gsm8k": 1.0}}, r"reward\.weights\.gsm8k=1\.0"),
        ({"sandbox": {"isolate": True}}, r"^reward\.sandbox\.isolate=True"),
        ({"sandbox": {"timeout_s": 0}}, r"^reward\.sandbox\.timeout_s=0"),
        ({"timeout_s": 0}, r"^reward\.timeout_s=0"),
    ],
)
def test_manager_refuses_weights_and_sandbox_keys_that_do_not_exist(section, message):
    with pytest.raises(ValueError, match=message):
        make_manager(config=OmegaConf.create({"reward": section}))


def test_manager_passes_the_puzzle_on():
    extra_info = {"task": "sudoku", "puzzle": "4020231402001000", "preamble": None, "index": 0}
    answer = list(map(ord, "<answer>4123231432410000</answer>"))
    result = run(make_manager(), answer, ground_truth="4123231432411432", extra_info=extra_info)
    assert result["reward_score"] == 5 / 8


def test_verl_knows_the_manager_and_registering_again_changes_nothing():
    manager = pytest.importorskip("maskgrpo_plugin.rewards.text.manager")
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls

    from maskgrpo_plugin import registration

    assert registration.register() == registration.register()
    assert get_reward_manager_cls("maskgrpo_text") is manager.TextRewardManager
