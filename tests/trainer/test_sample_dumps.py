"""Samples in a run's folder: which rows are chosen, and what is told of each."""

import json
import math

import numpy as np
import pytest

from maskgrpo_plugin.trainer.sample_dumps import (
    chosen_rows,
    group_of,
    prompt_text,
    sample_row,
    write_rows,
    write_samples,
)

LETTERS = {0: "a", 1: "b", 2: " c", 9: "<end>"}


def decode(ids):
    return "".join(LETTERS[token] for token in ids)


def fields(**changes):
    values = {
        "responses": [1, 0, 9, 9],
        "response_mask": [1, 1, 1, 0],
        "rm_scores": [0.0, 0.0, 0.5],
        "advantages": [2.0, 2.0, 2.0, 0.0],
        "extra_fields": {"reveal_step": [1, 0, 2, 3], "reward_extra_info": {"acc": 1.0, "format": 0.5}},
        "raw_prompt": [{"role": "user", "content": "1+1="}],
        "extra_info": {"modality": "text"},
        "reward_model": {"ground_truth": "2"},
        "data_source": "sums",
        "index": 7,
    }
    return values | changes


def test_groups_are_chosen_whole_and_never_more_rows_than_allowed():
    groups = [f"g{n // 4}" for n in range(40)]
    for most in range(41):
        chosen = chosen_rows(groups, most, seed=3)
        assert len(chosen) == (min(most, 4) if most < 4 else most // 4 * 4)
        assert chosen == sorted(set(chosen)) and len({groups[n] for n in chosen}) == math.ceil(len(chosen) / 4)
    assert chosen_rows([], 5, seed=0) == []


def test_which_groups_depends_on_the_step_alone():
    groups = [str(n // 2) for n in range(64)]
    draws = [tuple(chosen_rows(groups, 8, seed=step)) for step in range(12)]
    assert draws == [tuple(chosen_rows(groups, 8, seed=step)) for step in range(12)]
    assert len(set(draws)) > 8


def test_a_row_has_verls_keys_the_components_and_the_order_of_revealing_up_to_the_end():
    row = sample_row("abc-d_3_0", fields(), 12, decode, frozenset({9}))
    assert row == {
        "input": "1+1=",
        "output": "ba",
        "gts": "2",
        "score": 0.5,
        "step": 12,
        "uid": "abc-d_3_0",
        "group": "abc-d",
        "row": 7,
        "data_source": "sums",
        "modality": "text",
        "rewards": {"acc": 1.0, "format": 0.5},
        "advantage": 2.0,
        "length": 2,
        "pieces": ["b", "a", "<end>"],
        "reveal_step": [1, 0, 2],
    }


def test_what_a_run_does_not_have_is_left_out():
    bare = {"extra_fields": {}, "extra_info": None, "reward_model": None, "data_source": None, "advantages": None}
    row = sample_row("u_0_0", fields(**bare), 1, decode, frozenset({9}))
    assert "reveal_step" not in row and row["rewards"] == {} and row["gts"] is None and row["advantage"] is None
    assert sample_row("u_0_0", fields(advantages=[math.nan] * 4), 1, decode, frozenset())["advantage"] is None


def test_an_image_has_no_text():
    row = sample_row("u_0_0", fields(extra_info={"modality": "t2i"}), 1, decode, frozenset({9}))
    assert (row["output"], row["length"], row["modality"]) == ("", 4, "t2i") and "pieces" not in row


def test_a_conversation_is_told_with_its_roles():
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    assert prompt_text([{"role": "user", "content": parts}]) == "what?"
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
    assert prompt_text(talk) == "system: be brief\n\nuser: hi"


def test_the_group_of_a_key_is_all_before_completion_and_turn():
    assert group_of("a_b_2_0") == "a_b"


def test_rows_are_written_whole_with_numpys_values(tmp_path):
    write_rows([{"a": np.float32(0.5), "b": np.arange(2), "c": "é</script>"}], tmp_path / "new" / "3.jsonl")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["3.jsonl"]
    assert json.loads((tmp_path / "new" / "3.jsonl").read_text()) == {"a": 0.5, "b": [0, 1], "c": "é</script>"}


def test_a_failure_is_said_and_ends_nothing(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    write_samples(lambda: [{}], tmp_path / "file" / "3.jsonl")
    assert "could not be written" in caplog.text and "3.jsonl" in caplog.text


@pytest.mark.parametrize("key", ["dump_rows", "dump_freq"])
def test_numbers_that_cannot_work_are_named(tiny_run, key):
    import sys
    from pathlib import Path

    sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))
    import ranks

    from maskgrpo_plugin.errors import OptionError
    from maskgrpo_plugin.trainer.checks import check_trainer

    with pytest.raises(OptionError, match=rf"trainer\.{key}=-3"):
        check_trainer(ranks.compose_config(tiny_run, f"trainer.{key}=-3"))
    config = ranks.compose_config(tiny_run)
    check_trainer(config)
    assert config.trainer.rollout_data_dir == f"{config.trainer.default_local_dir}/rollouts"


class Futures:
    """verl's executor, which runs at once."""

    def submit(self, function, *arguments):
        from concurrent.futures import Future

        done = Future()
        done.set_result(function(*arguments))
        return done


def test_a_step_is_written_from_what_transfer_queue_holds(tmp_path, monkeypatch):
    import torch
    from omegaconf import OmegaConf
    from transfer_queue import KVBatchMeta
    from verl.trainer.ppo.v1.agent_loop_tq import list_of_dict_to_tensordict

    from maskgrpo_plugin.trainer import sample_dumps

    tensors = ("responses", "response_mask", "rm_scores", "advantages")
    held = {}
    for number in range(8):
        row = fields(index=number // 4)
        row["responses"] = [0] * (number % 3) + [9]
        size = len(row["responses"])
        row |= {"response_mask": [1] * size, "rm_scores": [0.0] * (size - 1) + [0.5], "advantages": [1.5] * size}
        row["extra_fields"]["reveal_step"] = list(range(size))
        row |= {name: torch.tensor(row[name]) for name in tensors} | {"prompts": torch.tensor([1, 2])}
        held[f"u{number // 4}_{number % 4}_0"] = row

    def kv_batch_get(keys, partition_id, select_fields):
        return list_of_dict_to_tensordict([{name: held[key][name] for name in select_fields} for key in keys])

    class Tokenizer:
        eos_token_id = 9

        def get_vocab(self):
            return {}

        def decode(self, ids, **_):
            return decode(ids)

    class Trainer(sample_dumps.DumpingTrainer):
        def __init__(self):
            self.config = OmegaConf.create({"trainer": {"dump_rows": 5, "dump_freq": 2}})
            self.tokenizer, self._dump_executor, self._dump_futures = Tokenizer(), Futures(), []

        def on_sample_end(self):
            pass

        def on_step_end(self):
            pass

    monkeypatch.setattr(sample_dumps.tq, "kv_batch_get", kv_batch_get)
    trainer = Trainer()
    batch = KVBatchMeta(partition_id="train", keys=list(held), tags=[{"is_padding": False}] * 8)
    for trainer.global_steps in (1, 2):
        trainer._log_rollout_data(batch, {}, str(tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["2.jsonl"]
    rows = [json.loads(line) for line in (tmp_path / "2.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and len({row["group"] for row in rows}) == 1
    for row in rows:
        assert row["pieces"] == ["a"] * row["length"] + ["<end>"] and row["reveal_step"] == list(
            range(row["length"] + 1)
        )
        assert (row["score"], row["advantage"], row["gts"], row["input"]) == (0.5, 1.5, "2", "1+1=")
        assert row["rewards"] == {"acc": 1.0, "format": 0.5} and f"u{row['row']}" == row["group"]
