"""Whole runs with images on the CPU."""

import pytest
from e2e_runs import ROOT, SMALL, train

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("mode", ["maskgrpo_sync", "maskgrpo_colocate_async"])
def test_images_train_while_a_scorer_fails_for_some_of_them(tiny_digits, tmp_path, mode):
    factory = f"{ROOT}/tests/e2e/brightness.py:Brightness"
    metrics = train(
        tiny_digits,
        tmp_path,
        "digits",
        f"digits_dir={tiny_digits}",
        *SMALL[:-2],
        "reward.image.scorers.digits=null",
        "reward.image.scorers.clip_folder=null",
        f"+reward.image.scorers.bright={{factory: '{factory}'}}",
        f"+reward.image.scorers.fragile={{factory: '{factory}', max_batch: 1, options: {{fail_below: 0.5}}}}",
        "actor_rollout_ref.rollout.sampler.options.cfg_scale=1.5",
        "algorithm.estimation.cfg_scale=1.5",
        "algorithm.max_lost_share=1",
        f"trainer.default_local_dir={tmp_path}",
        f"trainer.v1.trainer_mode={mode}",
        "trainer.total_training_steps=1",
        "trainer.test_freq=1",
        clean=False,  # the scorer's failures are logged with theirs
    )
    step = metrics[1]
    assert step["reward/failed_samples"] > 0 and step["reward/reward_failed"] > 0
    assert step["reward/bright"] > 0 and step["reward/bright_failed"] == 0.0
    assert step["reward/fragile_failed"] == pytest.approx(step["reward/failed_samples"] / 16)
    assert step["actor/level_1/mask_ratio"] == pytest.approx(0.9)
    assert step["actor/level_1/log_ratio_abs_max"] == 0.0
    assert step["response_length/mean"] == 17
    sheet = (tmp_path / "images" / "step_1.png").read_bytes()
    assert sheet.startswith(b"\x89PNG")
