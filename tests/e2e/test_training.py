"""Whole runs of verl's entry point on the CPU: training, resume after a stop, the autoregressive baseline."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from e2e_runs import ROOT, SMALL, train
from family_models import save_checkpoint
from transformers import AutoTokenizer

from maskgrpo_plugin.evaluation.checkpoints import merge_shards
from maskgrpo_plugin.run_report.find import find_runs
from maskgrpo_plugin.run_report.metrics import read_metrics

pytestmark = pytest.mark.slow


def actor_weights(checkpoint):
    """The actor's parameters in a verl FSDP checkpoint of one rank."""
    state = torch.load(checkpoint / "actor" / "model_world_size_1_rank_0.pt", weights_only=False)
    return {name: value.to_local() if hasattr(value, "to_local") else value for name, value in state.items()}


def test_a_resumed_run_equals_one_that_was_not_stopped(tiny_run, tmp_path):
    common = [
        f"quickstart_dir={tiny_run}",
        *SMALL,
        "trainer.save_freq=1",
        "trainer.resume_mode=auto",
        "actor_rollout_ref.actor.optim.lr=1e-3",
        "algorithm.estimation.mu=2",
        "algorithm.estimation.reference_sync_steps=2",
        f"reward.custom_reward_function.path={ROOT}/tests/e2e/varied_reward.py",
    ]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    metrics = train(
        tiny_run, whole, "quickstart", *common, "trainer.total_training_steps=3", f"trainer.default_local_dir={whole}"
    )
    stop_after_step_two(whole, stopped)
    resumed = train(
        tiny_run,
        stopped,
        "quickstart",
        *common,
        "trainer.total_training_steps=3",
        f"trainer.default_local_dir={stopped}",
    )
    assert sorted(resumed) == [3]
    assert resumed[3]["critic/score/mean"] == metrics[3]["critic/score/mean"]
    assert resumed[3]["actor/kl_loss"] == pytest.approx(metrics[3]["actor/kl_loss"], abs=1e-6)
    merged = merge_shards(whole / "global_step_3" / "actor")
    expected, got = actor_weights(whole / "global_step_3"), actor_weights(stopped / "global_step_3")
    assert sorted(expected) == sorted(got)
    for name in expected:
        torch.testing.assert_close(got[name], expected[name], atol=1e-6, rtol=0)
        assert torch.equal(merged[name], expected[name])
    first_step = actor_weights(whole / "global_step_1")
    assert max((expected[name] - first_step[name]).abs().max() for name in expected) > 1e-4

    assert metrics[2]["actor/level_1/kl_loss"] > 0.0
    assert metrics[3]["actor/level_1/kl_loss"] == pytest.approx(0.0, abs=1e-9)  # the reference was synchronised

    first = metrics[1]
    assert first["actor/level_1/log_ratio_abs_max"] == 0.0
    assert first["actor/level_1/ratio_mean"] == pytest.approx(1.0, abs=1e-6)
    assert first["actor/level_1/mask_ratio"] == pytest.approx(0.8)
    assert first["actor/level_2/mask_ratio"] == pytest.approx(0.999)
    assert first["rollout/requests"] == 16
    assert first["reward/score"] == pytest.approx(first["critic/score/mean"]) and first["critic/score/mean"] > 0
    assert first["reward/reward_failed"] == 0.0
    assert first["actor/level_1/masked_share"] > 0.5
    assert {"rollout/tokens_per_s", "rollout/model_calls_per_token", "rollout/batch_fill"} <= set(first)
    check_what_the_run_left(stopped, resumed[3])


def stop_after_step_two(run, stopped):
    """Copy what a run of three steps had written when its second checkpoint was whole, as if it was killed then."""
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "global_step_3")
    (stopped / "latest_checkpointed_iteration.txt").write_text("2")
    (stopped / "rollouts" / "3.jsonl").unlink()
    record = (stopped / "run.json").read_text()
    (stopped / "run.json").write_text(record.replace(str(run), str(stopped)))
    lines = (stopped / "log.jsonl").read_text().splitlines(keepends=True)
    (stopped / "log.jsonl").write_text("".join(lines[:2]))


def check_what_the_run_left(folder, last):
    """Record, metrics before the resume, and the samples of the last step with their order of revealing."""
    starts = json.loads((folder / "run.json").read_text())["starts"]
    assert [(start["step"], Path(start["metrics"]).name) for start in starts] == [
        (0, "log.part1.jsonl"),
        (2, "log.jsonl"),
    ]
    assert len((folder / "log.part1.jsonl").read_text().splitlines()) == 2
    assert sorted(file.name for file in (folder / "rollouts").iterdir()) == ["1.jsonl", "2.jsonl", "3.jsonl"]
    rows = [json.loads(line) for line in (folder / "rollouts" / "3.jsonl").read_text().splitlines()]
    assert len(rows) == 16 and len({row["group"] for row in rows}) == 4
    assert sum(row["score"] for row in rows) / 16 == pytest.approx(last["critic/score/mean"])
    for row in rows:
        assert len(row["pieces"]) == len(row["reveal_step"]) and min(row["reveal_step"]) >= 0
        assert row["rewards"]["score"] == pytest.approx(row["score"]) and row["input"].endswith("=")
    (run,) = find_runs([folder])
    assert list(read_metrics(run.metrics).rows) == [1, 2, 3]


def test_the_autoregressive_baseline_trains_on_the_same_data(tiny_run, tmp_path):
    metrics = train(
        tiny_run, tmp_path, "quickstart_ar", f"quickstart_dir={tiny_run}", *SMALL, "trainer.total_training_steps=1"
    )
    assert {"actor/pg_loss", "actor/kl_loss", "critic/score/mean", "rollout/tokens_per_s"} <= set(metrics[1])
    assert metrics[1]["rollout/requests"] == 16


def test_two_steps_of_the_gsm8k_config_with_lora_on_a_tiny_model_under_the_screen(tiny_run, tmp_path):
    metrics = train(
        tiny_run,
        tmp_path,
        "llada_8b_gsm8k_cpu",
        f"trainer.default_local_dir={tmp_path}/run",
        f"actor_rollout_ref.model.path={tiny_run}/model",
        f"data.train_files={tiny_run}/data/train.parquet",
        f"data.val_files={tiny_run}/data/validation.parquet",
        "data.train_batch_size=2",
        "actor_rollout_ref.actor.ppo_mini_batch_size=2",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=6",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=6",  # the first ratio is exact in equal batches
        "data.max_prompt_length=64",
        "data.max_response_length=64",
        "actor_rollout_ref.rollout.sampler.options.steps=32",
        "trainer.total_training_steps=2",
        "trainer.test_freq=-1",
        "trainer.save_freq=-1",
        "trainer.val_before_train=false",
        "trainer.logger=[console]",
        entry=("maskgrpo_plugin", "train"),
    )
    for step in (1, 2):
        assert len([key for key in metrics[step] if key.endswith("/mask_ratio")]) == 12
        assert metrics[step]["actor/level_1/log_ratio_abs_max"] == 0.0
    lines = (tmp_path / "output.txt").read_text().splitlines()
    assert len(lines) <= 60 and "added    trainer.logger=[console,file]" in lines
    assert {"starting Ray", "loading model and data", "training begins"} <= set(lines)
    assert [line.split()[1] for line in lines if line.startswith("step ")][-1] == "2/2"
    log = (tmp_path / "run" / "train.log").read_text()
    assert "step:2 - " in log and "engine is not available" not in log and "target_num_threads" not in log


def test_rollouts_of_a_block_model_ahead_of_training_keep_the_order_of_revealing(tiny_run, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    model = save_checkpoint("sdar", tmp_path / "model_block", tokenizer)
    metrics = train(
        tiny_run,
        tmp_path,
        "quickstart_block",
        f"quickstart_dir={tiny_run}",
        f"actor_rollout_ref.model.path={model}",
        *SMALL,
        "trainer.v1.trainer_mode=maskgrpo_colocate_async",
        "method=tracerl_block",
        f"reward.custom_reward_function.path={ROOT}/tests/e2e/varied_reward.py",
        "trainer.total_training_steps=3",
    )
    assert sorted(metrics) == [1, 2, 3]
    assert sum(metrics[step]["rollout/requests"] for step in metrics) >= 48  # how many are ahead is a matter of timing
    for step in (1, 2, 3):
        assert metrics[step]["actor/level_1/log_ratio_abs_max"] == 0.0
        assert metrics[step]["critic/score/mean"] > 0
        assert metrics[step]["actor/grad_norm"] > 0


def test_texts_train_while_scorers_raise_hang_and_lose_their_sandbox(tiny_run, tmp_path):
    """By ESPO, whose ratio and KL term are of one score per answer."""
    metrics = train(
        tiny_run,
        tmp_path,
        "quickstart",
        f"quickstart_dir={tiny_run}",
        *SMALL,
        "method=espo",
        "algorithm.estimation.mu=2",
        f"reward.custom_reward_function.path={ROOT}/tests/e2e/faulty_reward.py",
        "reward.timeout_s=3",
        "algorithm.on_reward_failure=drop_sample",
        "algorithm.max_lost_share=1",
        "trainer.total_training_steps=2",
        clean=False,  # the scorers' failures are logged with theirs
    )
    assert sorted(metrics) == [1, 2]
    for step in metrics.values():
        assert step["rollout/requests"] == 16
        assert step["reward/failed_samples"] == step["reward/dropped_samples"] == 12
        assert step["reward/reward_failed"] == 12 / 16
        assert step["reward/reward_timed_out"] == step["reward/reward_sandbox_lost"] == 4 / 16
        assert step["actor/level_1/log_ratio_abs_max"] == 0.0 and "actor/level_1/kl_of_scores" in step
        assert step["timing_s/old_log_prob"] > 0 and step["timing_s/ref"] > 0
