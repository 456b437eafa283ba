"""Images through the server, the agent loop's prompts and the training worker, on a small MMaDA with random weights."""

import asyncio
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.remasking import remask
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.magvitv2 import MAGVITv2
from maskgrpo_plugin.pixels import to_images
from maskgrpo_plugin.validation import preflight
from maskgrpo_plugin.workers.rollout.requests import RequestBuilder
from maskgrpo_plugin.workers.rollout.server import DiffusionServer


@pytest.fixture(scope="module")
def family(tiny_digits):
    folder = tiny_digits / "model"
    return build_family(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))


SCORER = Path(__file__).parents[1] / "e2e" / "brightness.py"
BRIGHTNESS = [
    "reward.image.scorers.digits=null",
    "reward.image.scorers.clip_folder=null",
    f"+reward.image.scorers.bright={{factory: '{SCORER}:Brightness'}}",
]


def compose(folder, *overrides):
    return ranks.compose_config(folder, *BRIGHTNESS, *overrides, name="digits", folder_key="digits_dir")


def make_server(folder, *overrides):
    config = compose(folder, "actor_rollout_ref.rollout.load_format=auto", *overrides)
    return DiffusionServer(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 0)


def build(family, content, info):
    return RequestBuilder(family.tokenizer, family).build([{"role": "user", "content": content}], info, 17)


def prompt_of(family, digit):
    return build(family, f"a handwritten {digit}", {"modality": "t2i"})


async def draw(server, prompts, seeds):
    requests = [
        server.generate("r", prompt.prompt_ids, {"temperature": 1.0, "seed": seed}, **prompt.arguments)
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    return await asyncio.gather(*requests)


@pytest.mark.parametrize("sampler", ["emerge", "maskgit"])
@pytest.mark.parametrize("cfg_scale", [0.0, 2.0])
def test_an_image_request_gives_codes_of_the_codebook_and_their_pixels(tiny_digits, family, sampler, cfg_scale):
    server = make_server(
        tiny_digits,
        f"actor_rollout_ref.rollout.sampler.name={sampler}",
        f"actor_rollout_ref.rollout.sampler.options.cfg_scale={cfg_scale}",
    )
    prompts = [prompt_of(family, digit) for digit in ("seven", "two", "nine")]

    async def go():
        together = await draw(server, prompts, [5, 6, 7])
        alone = [(await draw(server, [prompt], [seed]))[0] for prompt, seed in zip(prompts, [5, 6, 7], strict=True)]
        return together, alone

    together, alone = asyncio.run(asyncio.wait_for(go(), 60))
    start, stop = family.image.vocab_slice
    vq = MAGVITv2.from_pretrained(tiny_digits / "vq").eval()
    for output, single in zip(together, alone, strict=True):
        assert output.token_ids == single.token_ids
        codes, end = output.token_ids[:-1], output.token_ids[-1]
        assert len(codes) == 16 and all(start <= code < stop for code in codes)
        assert end == family.token_id("<|eoi|>")
        reveal = output.extra_fields["reveal_step"]
        assert reveal[-1] == -1 and 0 <= min(reveal[:-1]) <= max(reveal) < 8
        image = output.extra_fields["image"]
        assert image.shape == (8, 8, 3) and image.dtype == np.uint8
        pixels = vq.decode_code(torch.tensor([codes]) - start)
        assert np.array_equal(image, to_images(pixels)[0].numpy())


def test_guidance_changes_what_is_drawn(tiny_digits, family):
    prompts = [prompt_of(family, "seven")]
    outputs = []
    for scale in (0.0, 8.0):
        server = make_server(tiny_digits, f"actor_rollout_ref.rollout.sampler.options.cfg_scale={scale}")
        outputs.append(asyncio.run(draw(server, prompts, [1]))[0].token_ids)
    assert outputs[0] != outputs[1]


def test_a_question_about_an_image_is_answered_as_text(tiny_digits, family):
    server = make_server(tiny_digits, "actor_rollout_ref.rollout.sampler.name=emerge")
    info = {"modality": "mmu", "image_codes": list(range(16))}
    ids = build(family, "a handwritten", info).prompt_ids
    assert ids[:2] == [family.token_id("<|mmu|>"), family.token_id("<|soi|>")]
    assert ids[2:18] == [family.image.offset + code for code in range(16)]
    output = asyncio.run(server.generate("r", ids, {"temperature": 1.0, "seed": 1}))
    assert len(output.token_ids) == 17 and "image" not in output.extra_fields
    assert family.mask_token_id not in output.token_ids


def test_prompts_that_do_not_fit_are_refused(family):
    with pytest.raises(ValueError, match="modality"):
        build(family, "a", {"modality": "video"})
    with pytest.raises(ValueError, match="allowed are 8"):
        build(family, "a " * 20, {"modality": "t2i"})


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("actor_rollout_ref.rollout.sampler.name=semi_autoregressive", "rollout.sampler.name"),
        ("actor_rollout_ref.rollout.image.tokenizer_path=/nowhere", "rollout.image.tokenizer_path"),
        ("actor_rollout_ref.rollout.image.height=9", "rollout.image.width"),
        ("data.max_response_length=16", "data.max_response_length"),
        ("data.max_prompt_length=4", "data.max_prompt_length"),
    ],
)
def test_image_runs_are_checked_at_the_start(tiny_digits, override, key):
    extra = ["actor_rollout_ref.rollout.sampler.options.block_length=17"] if "semi" in override else []
    with pytest.raises(OptionError, match=key):
        preflight(compose(tiny_digits, override, *extra))


def test_sides_that_the_tokenizer_does_not_divide_are_refused(tiny_digits):
    image = "actor_rollout_ref.rollout.image"
    with pytest.raises(OptionError, match=r"image\.height"):
        preflight(compose(tiny_digits, f"{image}.height=9", f"{image}.width=8"))


def image_batch(family):
    """Three images and three answers to questions about images, of which two end early."""
    g = torch.Generator().manual_seed(0)
    end = family.token_id("<|eoi|>")
    start, stop = family.image.vocab_slice
    batch = {"prompts": [], "responses": [], "response_mask": [], "uncond_ids": []}
    for digit in ("seven", "two", "nine"):
        prompt = prompt_of(family, digit)
        batch["prompts"].append(prompt.prompt_ids)
        batch["responses"].append([*torch.randint(start, stop, (16,), generator=g).tolist(), end])
        batch["response_mask"].append(prompt.response_mask)
        batch["uncond_ids"].append(prompt.uncond_ids)
    for length in (17, 5, 9):
        info = {"modality": "mmu", "image_codes": torch.randint(16, (16,), generator=g).tolist()}
        prompt = build(family, "a handwritten", info)
        answer = torch.randint(9, 14, (17,), generator=g)
        answer[length:] = family.stop_token_ids[0]
        batch["prompts"].append(prompt.prompt_ids)
        batch["responses"].append(answer.tolist())
        batch["response_mask"].append([1] * 17)
        batch["uncond_ids"].append(prompt.uncond_ids)
    batch["mask_key"] = list(range(6))
    batch["advantages"] = torch.randn(6, generator=g).tolist()
    batch["reveal_step"] = [[0] * 17] * 6
    return batch


@pytest.fixture(scope="module")
def estimates(tiny_digits, family, tmp_path_factory):
    """Results of one rank, and of two, without guidance and with."""
    out, batch = tmp_path_factory.mktemp("estimates"), image_batch(family)
    common = [
        *BRIGHTNESS,
        "actor_rollout_ref.rollout.n=2",
        "data.train_batch_size=3",
        "actor_rollout_ref.actor.ppo_mini_batch_size=3",
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=3",
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=3",
        "actor_rollout_ref.actor.optim.optimizer=SGD",
    ]
    overrides = [[*common, f"algorithm.estimation.cfg_scale={scale}"] for scale in (0.0, 1.5)]
    job = {"name": "digits", "folder_key": "digits_dir"}
    one = ranks.run_ranks(1, tiny_digits, overrides, batch, out / "one", **job)
    two = ranks.run_ranks(2, tiny_digits, overrides, batch, out / "two", **job)
    return batch, {scale: (one[0][n], [rank[n] for rank in two]) for n, scale in enumerate((0.0, 1.5))}


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_estimation_scores_image_tokens_in_the_codebook_and_answers_in_the_vocabulary(
    tiny_digits, family, estimates, cfg_scale
):
    batch, results = estimates
    old = results[cfg_scale][0]["old"]
    model = AutoModelForCausalLM.from_pretrained(tiny_digits / "model").eval()
    for row, (prompt, response) in enumerate(zip(batch["prompts"], batch["responses"], strict=True)):
        tokens = torch.tensor([prompt + response])
        stops = [n for n, token in enumerate(response) if token in family.stop_token_ids]
        learned = 16 if row < 3 else min([*(n + 1 for n in stops), 17])
        flags = torch.zeros_like(tokens, dtype=torch.bool)
        flags[0, len(prompt) : len(prompt) + learned] = True
        columns = slice(*family.image.vocab_slice) if row < 3 else slice(None)
        for level, ratio in enumerate((0.9, 0.999)):
            noised = remask(
                tokens,
                flags,
                ratio,
                "random",
                seed=combine_seed(0, 3, level),
                keys=torch.tensor([row]),
                mask_token_id=family.mask_token_id,
            )
            noisy = noised.noisy.clone()
            if row >= 3:
                noisy[0, len(prompt) + learned :] = family.mask_token_id  # what follows the first end token
            blind = torch.cat([torch.tensor([batch["uncond_ids"][row]]), noisy[:, len(prompt) :]], dim=1)
            with torch.no_grad():
                cond, uncond = (model(ids).logits[0, -17:] for ids in (noisy, blind))
            logits = ((1 + cfg_scale) * cond - cfg_scale * uncond)[:, columns].log_softmax(-1)
            expected = logits.gather(1, tokens[0, -17:, None] - (columns.start or 0) * flags[0, -17:, None])[:, 0]
            expected = torch.where(noised.masked[0, -17:], expected, 0.0)
            torch.testing.assert_close(old[row, :, level], expected, atol=2e-5, rtol=0)
            assert (expected != 0).sum() > learned / 2 and (expected[learned:] == 0).all()


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_two_ranks_train_images_and_answers_as_one(estimates, cfg_scale):
    one, two = estimates[1][cfg_scale]
    torch.testing.assert_close(torch.cat([rank["old"] for rank in two]), one["old"], atol=2e-6, rtol=0)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two[0]["weights"][name], value, atol=2e-6, rtol=0)
    assert max(one["metrics"]["level_1/log_ratio_abs_max"]) == 0.0
    plain = estimates[1][0.0][0]["weights"]
    moved = max((value - plain[name]).abs().max() for name, value in one["weights"].items())
    assert (moved > 1e-5) == (cfg_scale > 0)


@pytest.mark.parametrize("name", ["mmada_8b_clip", "mmada_8b_hpsv2", "mmada_8b_server"])
def test_the_shipped_image_configs_pass_with_a_small_checkpoint(tiny_digits, name):
    scorer = {"mmada_8b_clip": "clip", "mmada_8b_hpsv2": "hpsv2", "mmada_8b_server": "unifiedreward"}[name]
    overrides = [
        f"actor_rollout_ref.model.path={tiny_digits}/model",
        f"data.train_files={tiny_digits}/data/train.parquet",
        f"data.val_files={tiny_digits}/data/validation.parquet",
        "data.max_prompt_length=16",
        "data.max_response_length=17",
        "ray_kwargs.ray_init.num_cpus=100",
        "+ray_kwargs.ray_init.num_gpus=8",
        "trainer.device=cpu",
        f"reward.image.scorers.{scorer}=null",
        BRIGHTNESS[-1],
    ]
    tokenizer = f"actor_rollout_ref.rollout.image.tokenizer_path={tiny_digits}/vq"
    with pytest.raises(OptionError, match="tokenizer_path"):
        preflight(ranks.compose_config("", *overrides, name=name, folder_key=None))
    config = ranks.compose_config("", *overrides, tokenizer, name=name, folder_key=None)
    assert preflight(config)
    assert config.actor_rollout_ref.rollout.n == 9 and config.algorithm.estimation.mu == 6
