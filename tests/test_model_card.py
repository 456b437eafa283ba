"""The model card of an exported checkpoint: what it says of a run, and what it leaves to its reader."""

import json

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from maskgrpo_plugin.export import main
from maskgrpo_plugin.model_card import Training, card, checkpoint_step, last_validation, read_training

RL = {
    "trainer": {"total_training_steps": 64, "experiment_name": "mine"},
    "algorithm": {
        "adv_estimator": "maskgrpo",
        "estimation": {"estimator": "maskgrpo", "mu": 12, "canvas": "masked", "options": {"gamma": 0.6, "cap": None}},
    },
    "actor_rollout_ref": {
        "model": {"path": "GSAI-ML/LLaDA-8B-Instruct", "lora_rank": 0, "lora_alpha": 64},
        "actor": {"policy_loss": {"loss_mode": "tracerl"}, "kl_loss_coef": 0.01, "optim": {"lr": 3e-6}},
        "rollout": {"n": 6, "sampler": {"name": "semi_autoregressive", "options": {"steps": 128}}},
    },
    "data": {"train_batch_size": 16, "train_files": "data/gsm8k/train.parquet"},
}


@pytest.fixture
def run(tmp_path):
    """A folder of checkpoints with the record of a run that was resumed, and its two files of metrics."""
    folder = tmp_path / "checkpoints"
    (folder / "global_step_32" / "actor").mkdir(parents=True)
    (folder / "latest_checkpointed_iteration.txt").write_text("32")
    parts = [tmp_path / "m.part1.jsonl", tmp_path / "m.jsonl"]
    rows = [[(0, 0.25), (16, 0.5)], [(32, 0.625), (48, 0.75)]]
    for file, of_part in zip(parts, rows, strict=True):
        lines = [json.dumps({"step": n, "data": {"val-core/gsm8k/acc/mean@1": acc}}) for n, acc in of_part]
        file.write_text("\n".join([*lines, '{"torn": ']))
    record = {
        "name": "mine | yours",
        "starts": [{"step": n, "metrics": str(file)} for n, file in enumerate(parts)],
        "versions": {"python": "3.11.9", "torch": "2.13.0", "peft": None},
        "config": RL,
    }
    (folder / "run.json").write_text(json.dumps(record))
    return folder


def rows_of(text):
    """The rows of a card's table by their first column."""
    cells = [
        line.strip("| ").split(" | ", 1) for line in text.splitlines() if line.startswith("| ") and "---" not in line
    ]
    return dict(cell for cell in cells if len(cell) == 2)


def test_a_card_tells_base_method_steps_versions_and_the_last_validation_until_its_step(run):
    for model in (run, run / "global_step_32", run / "global_step_32" / "actor"):
        text = card(read_training(str(model)), "folder")
        rows = rows_of(text)
        assert text.startswith("---\n") and "# mine \\| yours\n" in text
        assert rows["base model"] == "GSAI-ML/LLaDA-8B-Instruct" and rows["steps"] == "32 of 64"
        assert rows["estimator"] == "estimator=maskgrpo, mu=12, canvas=masked"
        assert rows["estimator's options"] == "gamma=0.6" and rows["loss"] == "loss_mode=tracerl, kl_loss_coef=0.01"
        assert rows["batch"] == "train_batch_size=16, n=6" and rows["last validation"] == "gsm8k acc 0.625 (step 32)"
        assert rows["trained with"] == "python 3.11.9, torch 2.13.0"
        head = yaml.safe_load(text.split("---")[1])
        assert head["base_model"] == "GSAI-ML/LLaDA-8B-Instruct" and "license" not in head
        assert "Not stated. Whoever publishes this model chooses its licence" in text


def test_supervised_training_has_its_own_settings(run):
    config = {"model": {"path": "/data/my_model", "model_type": "masked_diffusion"}, "optim": {"lr": 1e-5}}
    text = card(Training(step=3, config=config, validation="loss 0.07 (step 3)"), "sft_model")
    rows = rows_of(text)
    assert "supervised training" in text and "# sft_model" in text
    assert rows["objective"] == "model_type=masked_diffusion" and rows["learning rate"] == "lr=1e-05"
    assert "base_model" not in yaml.safe_load(text.split("---")[1])  # the hub does not know a local folder


def test_a_checkpoint_without_a_record_says_so(tmp_path):
    (tmp_path / "global_step_7").mkdir()
    text = card(read_training(str(tmp_path / "global_step_7")), "x")
    assert "left no `run.json`" in text and rows_of(text)["steps"] == "7" and "training_config.yaml" not in text
    (tmp_path / "run.json").write_text("{torn")
    assert read_training(str(tmp_path)) == Training()


def test_the_last_validation_is_of_texts_or_a_loss(tmp_path):
    file = tmp_path / "m.jsonl"
    file.write_text('{"step": 4, "data": {"val/loss": 0.123456}}\n{"step": 5, "data": {"train/loss": 1.0}}\n')
    assert last_validation([str(file), None, str(tmp_path / "gone")], None) == "loss 0.1235 (step 4)"
    assert last_validation([str(file)], 3) == ""
    assert checkpoint_step(tmp_path) is None


def test_an_export_has_a_card_and_keeps_one_that_was_edited(tiny_run, tmp_path):
    with torch.random.fork_rng(devices=[]):
        model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
        get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    out = tmp_path / "out"
    command = ["--model", str(tmp_path / "adapter"), "--base-model", str(tiny_run / "model"), "--output-dir", str(out)]
    assert main(command) == 0
    text = (out / "README.md").read_text()
    assert rows_of(text)["base model"] == str(tiny_run / "model") and "# out" in text
    AutoModelForCausalLM.from_pretrained(out)
    (out / "README.md").write_text("edited")
    assert main(command) == 0 and (out / "README.md").read_text() == "edited"
