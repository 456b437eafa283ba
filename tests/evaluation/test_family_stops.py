"""An evaluated answer ends at the family's own end tokens, in the written text and in its score alike."""

import asyncio
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from small_tokenizer import make_tokenizer

from maskgrpo_plugin.evaluation.problems import Problem
from maskgrpo_plugin.evaluation.records import Records
from maskgrpo_plugin.evaluation.runner import Length, Runner
from maskgrpo_plugin.evaluation.scoring import Scorer, reward_config
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.llada import LLaDAConfig
from maskgrpo_plugin.workers.rollout.requests import RowRequest

DIMOO = ["<image>", "</image>", "<answer>", "</answer>", "<newline>", "<uncondition>"]


class Pool:
    """Servers that answer every request with the same tokens."""

    def __init__(self, token_ids):
        self.token_ids = token_ids

    async def reconfigure(self, config):
        pass

    async def generate(self, **request):
        return SimpleNamespace(token_ids=self.token_ids, extra_fields={"model_calls": 1})


@pytest.mark.parametrize("prefix", [(), ("a",)])
def test_what_follows_the_familys_end_token_is_neither_text_nor_scored(tmp_path, prefix):
    tokenizer = make_tokenizer(*DIMOO)
    size = len(tokenizer) + 32
    family = build_family(
        LLaDAConfig(vocab_size=size, embedding_size=size, mask_token_id=3, codebook_size=32, num_vq_tokens=4), tokenizer
    )
    prefix_ids, answer = (tuple(tokenizer.convert_tokens_to_ids(words)) for words in (prefix, ("seven", "is")))
    (tmp_path / "reward.py").write_text(
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    return float(solution_str.split() == ground_truth.split())\n"
    )
    custom = f"reward.custom_reward_function.path={tmp_path / 'reward.py'}"
    values = {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": "what"}],
        "reward_model": {"ground_truth": " ".join([*prefix, "seven", "is"])},
    }
    runner = Runner(
        Pool([*answer, family.token_id("</answer>"), *answer]),
        Scorer(reward_config([custom], images=False), tokenizer),
        Records(tmp_path / "out", {"lengths": {}}),
        tokenizer=tokenizer,
        stop_token_ids=family.stop_token_ids,
        temperature=0.0,
        seed=0,
        in_flight=1,
    )
    request = RowRequest([5, *prefix_ids], [1] * 5, [], prefix_ids=prefix_ids)
    [row] = asyncio.run(runner.run([Problem("mine/0", 0, values)], [Length(5, None, {"mine/0": request})], 1))
    assert row["effective_tokens"] == 2 and row["text"].split() == [*prefix, "seven", "is"]
    assert row["score"] == 1.0 and row["failure"] is None
