"""Run by test_extending.py in a folder with the recipes' files: imports verl alone, prints what it then finds as JSON.

Arguments: the commands' arguments after `main_ppo` as JSON, a folder as the quickstart's, one as the digits example's.
"""

import json
import math
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import verl
from hydra import compose, initialize_config_dir
from transformers import AutoModelForCausalLM, AutoTokenizer
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY

from maskgrpo_plugin.diffusion.estimators import Rows, build_estimator
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.rewards import score
from maskgrpo_plugin.rewards.images import ImageSample
from maskgrpo_plugin.rewards.images.registry import build_scorer
from maskgrpo_plugin.rewards.text.manager import TextRewardManager
from maskgrpo_plugin.validation import preflight

VERL_CONFIGS = Path(verl.__file__).parent / "trainer" / "config"


def method():
    rows = Rows(
        tokens=torch.tensor([[5, 6, 7, 2, 8]]),
        response=torch.tensor([[False, False, True, True, True]]),
        prompt=torch.tensor([[True, True, False, False, False]]),
        attended=torch.ones(1, 5, dtype=torch.bool),
        keys=torch.tensor([3]),
        mask_token_id=9,
        stop_token_ids=(2,),
    )
    (only,) = build_estimator("half", mu=2, level=1.0).passes(rows, seed=1, step=2, update=0)
    new, zeros, ones = torch.tensor([[math.log(2), 0.0]]), torch.zeros(1, 2), torch.ones(1, 2)
    settings = SimpleNamespace(clip_ratio=0.2, global_batch_info={})
    loss, metrics = POLICY_LOSS_REGISTRY["soft_clip"](zeros, new, ones, ones.bool(), "token-mean", settings)
    rewards = torch.tensor([[0.0, 1], [0, 2], [1, 3], [0, 0], [0, 0]])
    groups = np.array(["a", "a", "a", "b", "b"])
    advantages, _ = ADV_ESTIMATOR_REGISTRY["median"](rewards, torch.ones(5, 2), groups)
    return {
        "noisy": only.noisy.tolist(),
        "scored": only.scored.tolist(),
        "loss": loss.item(),
        "largest": metrics["actor/largest_log_ratio"],
        "advantages": advantages.tolist(),
    }


@torch.no_grad()
def model():
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained("my_model").eval(),
        AutoTokenizer.from_pretrained("my_model"),
    )
    family = build_family(model.config, tokenizer)
    row = torch.arange(9, 15)[None]
    padded, mask = torch.cat([torch.tensor([[0, 0]]), row], 1), torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    alone = model(row).logits
    other_end = row.clone()
    other_end[0, -1] = 9
    return {
        "model": type(model).__name__,
        "family": family.name,
        "stops": family.stop_token_ids,
        "user": tokenizer.convert_tokens_to_ids("<|user|>"),
        "padding": (model(padded, attention_mask=mask).logits[:, 2:] - alone).abs().max().item(),
        "both_directions": (model(other_end).logits[:, 0] - alone[:, 0]).abs().max().item(),
    }


def sampler():
    scores = torch.zeros(4, 10)
    scores[:, 2] = torch.tensor([0.0, 1, 3, 2])  # token 2, surest at the third position

    def predict(tokens, attention_mask=None):
        return SimpleNamespace(logits=scores.expand(len(tokens), -1, -1).clone())

    prompt = torch.tensor([[4]])
    best = build_sampler("margin", steps=3, response_length=3).generate(predict, prompt, mask_token_id=9)
    drawing = build_sampler("margin", steps=2, response_length=3, temperature=5.0, sharpness=2)

    def draw(seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        prompts = prompt.expand(len(seeds), -1)
        return drawing.generate(predict, prompts, mask_token_id=9, generator=generators).sequences.tolist()

    return {
        "sequences": best.sequences.tolist(),
        "reveal_step": best.reveal_step.tolist(),
        "drawn_alone": [*draw([1]), *draw([2])],
        "drawn_together": draw([1, 2]),
    }


def rewards():
    grey, red = np.full((4, 4, 3), 90, dtype=np.uint8), np.zeros((4, 4, 3), dtype=np.uint8)
    red[:, :2, 0] = 255
    samples = [ImageSample(image, "a red wall") for image in (grey, red)]
    return {
        "near": score("near_sum", "12<|eot_id|>9", "13"),
        "text": score("near_sum", "twelve", "13"),
        "weighted": score("near_sum", "12", "13", weights={"number": 0}),
        "colour": build_scorer("colour", {"power": 2.0}).score(samples),
    }


def compose_run(arguments, folders, *more):
    """The config of a run's arguments, `--config-dir FOLDER --config-name NAME override…`, with small checkpoints."""
    directory, name, overrides = arguments[1], arguments[3], arguments[4:]
    directory = Path(os.path.expandvars(directory)).resolve()
    search = [each for each in overrides if each.startswith("hydra.searchpath=")]
    overrides = [each for each in overrides if each not in search]
    given = (
        search[0].partition("=[")[2].rstrip("]").split(",") if search else [f"file://{os.environ['PLUGIN']}/configs"]
    )
    places = {
        "quickstart": [f"quickstart_dir={folders[0]}"],
        "digits": [
            f"digits_dir={folders[1]}",
            "reward.image.scorers.digits=null",
            "reward.image.scorers.clip_folder=null",
        ],
    }
    with initialize_config_dir(str(directory), version_base=None):
        path = f"hydra.searchpath=[{','.join([*given, f'file://{VERL_CONFIGS}'])}]"
        return compose(name, overrides=[path, *places.get(name, []), *overrides, *more])


def refusal(arguments, folders, *more):
    try:
        preflight(compose_run(arguments, folders, *more))
    except OptionError as error:
        return str(error)
    return "not refused"


def main():
    commands, *folders = json.loads(sys.argv[1]), *sys.argv[2:]
    sys.argv[1:] = [f"{folders[0]}/model"]
    for script in ("my_data.py", "my_checkpoint.py"):
        runpy.run_path(script)
    images = commands[2]
    whole = commands[3]
    wrong = {
        "algorithm.estimation.estimator": "nope",
        "algorithm.adv_estimator": "nope",
        "actor_rollout_ref.actor.policy_loss.loss_mode": "nope",
        "actor_rollout_ref.rollout.sampler.name": "nope",
        "algorithm.estimation.options.level": 7,
    }
    refused = {key: refusal(whole, folders, f"{key}={value}") for key, value in wrong.items()}
    refused["reward.weights.nope"] = refusal(whole, folders, "+reward.weights.nope={a: 1}")
    refused["actor_rollout_ref.model.path"] = refusal(
        whole, folders, f"actor_rollout_ref.model.path={folders[0]}/model_ar"
    )
    refused["reward.image.scorers.nope.kind"] = refusal(images, folders, "+reward.image.scorers.nope={weight: 1}")
    refused["reward.image.scorers.colour.options.power"] = refusal(
        images, folders, "reward.image.scorers.colour.options.power=70"
    )
    headless = Path("my_configs/method/headless.yaml")
    headless.write_text(Path("my_configs/method/mine.yaml").read_text().replace("# @package _global_\n", ""))
    refused["method"] = refusal(commands[0], folders, "method=headless")
    runs = [preflight(compose_run(command, folders)) for command in commands]
    tokenizer = AutoTokenizer.from_pretrained("my_model")
    ends = sorted(TextRewardManager(compose_run(whole, folders), tokenizer).stop_token_ids)
    answers = {"runs": runs, "refused": refused, "reward_ends": ends}
    print(json.dumps(method() | model() | sampler() | rewards() | answers))


main()
