"""Make what the digits example needs: image tokenizer, text-to-image model, classifier, CLIP and prompts, in minutes.

All are trained from scratch on scikit-learn's 1797 handwritten digits of 8 × 8 pixels: the image tokenizer (MAGVIT-v2
in small) and the model (MMaDA's layout in small) on one half, the two scorers on the other, so that they judge images
of pixels they never saw. The model's captions name a wrong digit in part, a habit that a reward can correct; its
training stops as soon as sampled images show the prompted digit with the target probability.
"""

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from digit_data import DIGIT_NAMES, digit_prompt, digit_rows
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ResNetConfig, ResNetForImageClassification

from maskgrpo_plugin.data.rows import write_parquet
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.families import ImageFamily, Prompt, build_family
from maskgrpo_plugin.models.image_scorers import Preprocessing
from maskgrpo_plugin.models.magvitv2 import MAGVITv2, MAGVITv2Config
from maskgrpo_plugin.models.mmada import MMadaConfig, MMadaModelLM
from maskgrpo_plugin.pixels import write_contact_sheet

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|bos|>",
    "<|endoftext|>",
    "<|mdm_mask|>",
    "<|unk|>",
    "[iPAD]",
    "<|t2i|>",
    "<|mmu|>",
    "<|soi|>",
    "<|eoi|>",
)
WORDS = ("a", "handwritten", *DIGIT_NAMES)
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"

# sampler and guidance weight, by the name that the report gives them
REPORTED_SAMPLERS = {"emerge": ("emerge", 0.0), "maskgit": ("maskgit", 0.0), "emerge_cfg": ("emerge", 1.5)}


@dataclass(frozen=True)
class Recipe:
    """How the models are made; the defaults take about two minutes on one core."""

    seed: int = 0
    generator_images: int = 1000  # for tokenizer and model; the scorers have the others, the last of them as a test
    test_images: int = 197
    # image tokenizer
    base_channels: int = 16
    code_bits: int = 6
    vq_steps: int = 400
    vq_batch_size: int = 64
    vq_learning_rate: float = 4e-3
    commitment: float = 0.05  # pulls the latents to ±1; more of it, and few codes are used
    # model
    d_model: int = 96
    n_layers: int = 3
    n_heads: int = 4
    mlp_hidden_size: int = 256
    init_std: float = 0.08
    embedding_std: float = 1.0  # a token's own vector must outweigh the first blocks' output
    max_text_length: int = 8
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 20
    average_decay: float = 0.95
    wrong_captions: float = 0.25  # share of the captions that name another digit
    dropped_captions: float = 0.1  # share of the captions left empty, for guidance
    max_steps: int = 2000
    evaluate_every: int = 50
    images_a_digit: int = 40
    screening_images_a_digit: int = 10  # the others are drawn only where these come near the target
    screening_margin: float = 0.1
    reported_images_a_digit: int = 40
    sampling_steps: int = 8
    target_probability: float = 0.5
    # scorers
    scorer_steps: int = 300
    scorer_batch_size: int = 64
    scorer_learning_rate: float = 2e-3
    scorer_noise: float = 0.2
    # prompts
    train_rows: int = 2000
    validation_rows: int = 100

    @property
    def vq_fit(self) -> tuple[int, int, float]:
        """Steps, batch size and learning rate of the image tokenizer."""
        return self.vq_steps, self.vq_batch_size, self.vq_learning_rate

    @property
    def scorer_fit(self) -> tuple[int, int, float]:
        """Steps, batch size and learning rate of each scorer."""
        return self.scorer_steps, self.scorer_batch_size, self.scorer_learning_rate


@dataclass(frozen=True)
class Digits:
    """Images (B, 3, 8, 8) with values in [-1, 1], and the digits they show (B,)."""

    pixels: Tensor
    labels: Tensor

    def __getitem__(self, rows: slice) -> "Digits":
        return Digits(self.pixels[rows], self.labels[rows])

    def __len__(self) -> int:
        return self.labels.numel()


def load_digits(recipe: Recipe) -> tuple[Digits, Digits, Digits]:
    """The images in three parts that share none: for generators, for scorers, and for tests, in the seed's order."""
    from sklearn.datasets import load_digits as load

    data = load()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(recipe.seed))
    pixels = torch.tensor(data.images, dtype=torch.float32)[order, None].expand(-1, 3, -1, -1) / 8 - 1
    digits = Digits(pixels.contiguous(), torch.tensor(data.target)[order])
    first, last = recipe.generator_images, len(digits) - recipe.test_images
    return digits[slice(first)], digits[slice(first, last)], digits[slice(last, None)]


def make_tokenizer(*, with_ends: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of one token a word.

    Args:
        with_ends: put bos and eos around a text by itself, as CLIP's does.
    """
    vocabulary = {token: n for n, token in enumerate((*SPECIAL_TOKENS, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if with_ends:
        ends = [(token, vocabulary[token]) for token in ("<|bos|>", "<|endoftext|>")]
        tokenizer.post_processor = processors.TemplateProcessing("<|bos|> $A <|endoftext|>", special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|endoftext|>",
        unk_token="<|unk|>",
        mask_token="<|mdm_mask|>",
        additional_special_tokens=list(SPECIAL_TOKENS[5:]),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def train_vq(images: Digits, recipe: Recipe) -> MAGVITv2:
    """An image tokenizer of 4 × 4 tokens, trained to rebuild the images (mean square error and commitment)."""
    config = MAGVITv2Config(
        base_channels=recipe.base_channels,
        channel_multipliers=(1, 2),
        encoder_blocks=(1, 1),
        decoder_blocks=(1, 1),
        code_bits=recipe.code_bits,
        norm_groups=8,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = MAGVITv2(config)

    def loss(rows: Tensor) -> Tensor:
        pixels = images.pixels[rows]
        rebuilt, latents = model(pixels)
        codes = torch.where(latents > 0, 1.0, -1.0)
        return F.mse_loss(rebuilt, pixels) + recipe.commitment * F.mse_loss(latents, codes)

    _fit(model, loss, len(images), *recipe.vq_fit, recipe.seed)
    return model


def train_classifier(images: Digits, recipe: Recipe) -> tuple[ResNetForImageClassification, Preprocessing]:
    """A small residual network that names the digit, trained on noisy images."""
    preprocessing = Preprocessing(32, 32, False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    config = ResNetConfig(
        embedding_size=16,
        hidden_sizes=[32, 64],
        depths=[1, 1],
        layer_type="basic",
        id2label={str(i): str(i) for i in range(10)},
        label2id={str(i): i for i in range(10)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 1)
        model = ResNetForImageClassification(config)
    noise = torch.Generator().manual_seed(recipe.seed)

    def loss(rows: Tensor) -> Tensor:
        pixels = preprocessing(_noisy(images.pixels[rows], recipe.scorer_noise, noise))
        return F.cross_entropy(model(pixel_values=pixels).logits, images.labels[rows])

    _fit(
        model,
        loss,
        len(images),
        recipe.scorer_steps,
        recipe.scorer_batch_size,
        recipe.scorer_learning_rate,
        recipe.seed,
    )
    return model, preprocessing


def train_clip(images: Digits, tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> tuple[CLIPModel, Preprocessing]:
    """A small CLIP: an image must be nearer to its digit's prompt than to the nine others'."""
    preprocessing = Preprocessing(16, 16, False, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    shared = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "projection_dim": 32}
    config = CLIPConfig(
        text_config={
            **shared,
            "num_hidden_layers": 1,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**shared, "num_hidden_layers": 2, "image_size": 16, "patch_size": 4},
        projection_dim=32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed + 2)
        model = CLIPModel(config)
    texts = tokenizer([digit_prompt(digit) for digit in range(10)], padding=True, return_tensors="pt")
    noise = torch.Generator().manual_seed(recipe.seed)

    def loss(rows: Tensor) -> Tensor:
        output = model(
            input_ids=texts["input_ids"],
            attention_mask=texts["attention_mask"],
            pixel_values=preprocessing(_noisy(images.pixels[rows], recipe.scorer_noise, noise)),
        )
        return F.cross_entropy(output.logits_per_image, images.labels[rows])

    _fit(
        model,
        loss,
        len(images),
        recipe.scorer_steps,
        recipe.scorer_batch_size,
        recipe.scorer_learning_rate,
        recipe.seed,
    )
    return model, preprocessing


def make_model(tokenizer: PreTrainedTokenizerFast, vq: MAGVITv2, recipe: Recipe) -> MMadaModelLM:
    """An MMaDA model with random weights from the recipe's seed; its vocabulary ends with the tokenizer's codebook."""
    config = MMadaConfig(
        d_model=recipe.d_model,
        n_heads=recipe.n_heads,
        n_kv_heads=recipe.n_heads,
        n_layers=recipe.n_layers,
        mlp_hidden_size=recipe.mlp_hidden_size,
        llm_vocab_size=len(tokenizer),
        new_vocab_size=len(tokenizer) + vq.config.codebook_size,
        codebook_size=vq.config.codebook_size,
        num_vq_tokens=16,
        max_text_length=recipe.max_text_length,
        max_sequence_length=64,
        rope_theta=10000.0,
        init_std=recipe.init_std,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = MMadaModelLM(config)
        nn.init.normal_(model.get_input_embeddings().weight, std=recipe.embedding_std)
    return model


@dataclass(frozen=True)
class PromptTable:
    """Canvases of the ten prompts and, last, of the empty one.

    Attributes:
        canvas, mask: (11, L) tokens with masks in the image's place, and 1 = token, 0 = padding.
        uncond, uncond_mask: (11, P) prompts without their text.
        image: (L,) bool, the image's positions.
    """

    canvas: Tensor
    mask: Tensor
    uncond: Tensor
    uncond_mask: Tensor
    image: Tensor

    @classmethod
    def build(cls, family: ImageFamily) -> "PromptTable":
        """Lay out the prompts as the rollout does."""
        prompts: list[Prompt] = [family.text_to_image(digit_prompt(digit)) for digit in range(10)]
        prompts.append(family.text_to_image(""))
        image = (0,) * len(prompts[0].prompt_ids) + prompts[0].response_mask
        return cls(
            canvas=torch.tensor([prompt.canvas_ids for prompt in prompts]),
            mask=torch.tensor([(*prompt.prompt_mask, *(1 for _ in prompt.response_ids)) for prompt in prompts]),
            uncond=torch.tensor([prompt.uncond_ids for prompt in prompts]),
            uncond_mask=torch.tensor([prompt.uncond_mask for prompt in prompts]),
            image=torch.tensor(image, dtype=torch.bool),
        )


def diffusion_loss(
    model: nn.Module,
    family: ImageFamily,
    prompts: PromptTable,
    captions: Tensor,
    tokens: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """LLaDA's objective (arXiv 2502.09992, Eq. 5) on image tokens: cross entropy at masked ones over t, per token.

    Args:
        model: as `MMadaModelLM`.
        family: the model's family.
        prompts: see `PromptTable`.
        captions: (B,) rows of the table.
        tokens: (B, N) ids of image tokens; each is masked with probability t, whose values are spread evenly over
            (0, 1) in a batch.
        generator: source of t and of the masks.

    Returns:
        A scalar, 0 or more; log of the codebook size in expectation for a model that knows nothing.
    """
    rows = tokens.shape[0]
    level = ((torch.rand(1, generator=generator) + torch.arange(rows) / rows) % 1).clamp_min(1e-3).unsqueeze(1)
    masked = torch.rand(tokens.shape, generator=generator) < level
    canvas = prompts.canvas[captions].clone()
    canvas[:, prompts.image] = tokens.masked_fill(masked, family.mask_token_id)
    positions = torch.zeros_like(canvas, dtype=torch.bool)
    positions[:, prompts.image] = masked
    output = model(
        canvas,
        attention_mask=prompts.mask[captions],
        logits_positions=positions,
        target_ids=tokens[masked],
        vocab_slice=family.image.vocab_slice,
    )
    return -(output.log_probs / level.expand_as(masked)[masked]).sum() / tokens.numel()


@torch.no_grad()
def sample_digits(
    model: nn.Module,
    vq: MAGVITv2,
    family: ImageFamily,
    prompts: PromptTable,
    digits: Tensor,
    *,
    sampler: str,
    steps: int,
    seed: int,
    cfg_scale: float = 0.0,
) -> Tensor:
    """Images of the prompts of `digits` (B,); (B, 3, 8, 8) in about [-1, 1]."""
    count = int(prompts.image.sum())
    build = build_sampler(
        sampler, steps=steps, response_length=count, cfg_scale=cfg_scale, vocab_slice=family.image.vocab_slice
    )
    output = build.generate(
        model,
        prompts.canvas[digits],
        prompts.mask[digits],
        mask_token_id=family.mask_token_id,
        generator=torch.Generator().manual_seed(seed),
        uncond_input_ids=prompts.uncond[digits],
        uncond_attention_mask=prompts.uncond_mask[digits],
    )
    return vq.decode_code(family.image.to_codes(output.sequences[:, prompts.image]))


@torch.no_grad()
def classify(classifier: nn.Module, preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
    """Probabilities of the digits; (B, 3, H, W) -> (B, 10)."""
    return classifier(pixel_values=preprocessing(pixels)).logits.softmax(-1)


def pretrain(
    model: MMadaModelLM,
    vq: MAGVITv2,
    family: ImageFamily,
    images: Digits,
    classifier: tuple[nn.Module, Preprocessing],
    recipe: Recipe,
) -> tuple[int, float, list[float]]:
    """Train by AdamW until sampled images show the prompted digit with the recipe's probability, or `max_steps`.

    Args:
        model: trained in place; ends in evaluation mode with the running average of its weights.
        vq: the image tokenizer.
        family: the model's family.
        images: what to learn.
        classifier: who judges, with its preprocessing.

    Returns:
        Steps taken, the probability last measured, and the loss of each step.
    """
    prompts = PromptTable.build(family)
    tokens = vq.get_code(images.pixels) + family.image.offset
    generator = torch.Generator().manual_seed(recipe.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup_steps))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay))
    asked = torch.arange(10).repeat(recipe.images_a_digit)
    losses, measured, step = [], 0.0, 0
    model.train()
    while step < recipe.max_steps:
        rows = torch.randint(len(images), (recipe.batch_size,), generator=generator)
        captions = corpus_captions(images.labels[rows], recipe, generator)
        value = diffusion_loss(model, family, prompts, captions, tokens[rows], generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        average.update_parameters(model)
        losses.append(float(value.detach()))
        step += 1
        if step % recipe.evaluate_every == 0 or step == recipe.max_steps:
            judge = partial(_prompted, average.module.eval(), vq, family, prompts, classifier, recipe)
            measured = judge(asked[: 10 * recipe.screening_images_a_digit])
            if measured >= recipe.target_probability - recipe.screening_margin:
                measured = judge(asked)
            logger.info("step %d: loss %.3f, probability of the prompted digit %.3f", step, losses[-1], measured)
            if measured >= recipe.target_probability:
                break
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return step, measured, losses


def corpus_captions(labels: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Rows of the prompt table for images of `labels` (B,): some name another digit, some are empty; (B,)."""
    other = (labels + torch.randint(1, 10, labels.shape, generator=generator)) % 10
    wrong = torch.rand(labels.shape, generator=generator) < recipe.wrong_captions
    dropped = torch.rand(labels.shape, generator=generator) < recipe.dropped_captions
    return torch.where(wrong, other, labels).masked_fill(dropped, 10)


def make(output_dir: Path, recipe: Recipe) -> dict[str, float]:
    """Train and save everything: `model`, `vq`, `classifier`, `clip`, `data` and `samples.png`.

    Returns:
        What was measured, by name: shares and probabilities from 0 to 1, `steps`, and `seconds` in all.
    """
    start = time.monotonic()
    generators, scorers, test = load_digits(recipe)
    tokenizer, clip_tokenizer = make_tokenizer(), make_tokenizer(with_ends=True)
    classifier, classifier_inputs = train_classifier(scorers, recipe)
    clip, clip_inputs = train_clip(scorers, clip_tokenizer, recipe)
    logger.info("scorers trained after %.0f s", time.monotonic() - start)
    vq = train_vq(generators, recipe)
    logger.info("image tokenizer trained after %.0f s", time.monotonic() - start)
    model = make_model(tokenizer, vq, recipe)
    family = build_family(model.config, tokenizer)
    if not isinstance(family, ImageFamily):
        raise TypeError(f"the family {family.name} draws no images")
    steps, measured, _ = pretrain(model, vq, family, generators, (classifier, classifier_inputs), recipe)

    _save(output_dir / "model", model, tokenizer)
    _save(output_dir / "vq", vq)
    _save(output_dir / "classifier", classifier)
    classifier_inputs.save(output_dir / "classifier", "ViTImageProcessor")
    _save(output_dir / "clip", clip, clip_tokenizer)
    clip_inputs.save(output_dir / "clip", "CLIPImageProcessor")
    for split, rows in (("train", recipe.train_rows), ("validation", recipe.validation_rows)):
        write_parquet(digit_rows(rows, split), output_dir / "data" / f"{split}.parquet")

    rebuilt = vq.decode_code(vq.get_code(test.pixels))
    results = {
        "classifier_accuracy": _accuracy(classify(classifier, classifier_inputs, test.pixels), test.labels),
        "classifier_accuracy_rebuilt": _accuracy(classify(classifier, classifier_inputs, rebuilt), test.labels),
        "clip_accuracy": _accuracy(_clip_logits(clip, clip_inputs, clip_tokenizer, test.pixels), test.labels),
        "clip_accuracy_rebuilt": _accuracy(_clip_logits(clip, clip_inputs, clip_tokenizer, rebuilt), test.labels),
        "rebuilt_mse": float(F.mse_loss(rebuilt, test.pixels)),
        "steps": float(steps),
        "probability_at_stop": measured,
    }
    each = recipe.reported_images_a_digit
    prompts, asked = PromptTable.build(family), torch.arange(10).repeat_interleave(each)
    for name, (sampler, scale) in REPORTED_SAMPLERS.items():
        pixels = sample_digits(
            model,
            vq,
            family,
            prompts,
            asked,
            sampler=sampler,
            steps=recipe.sampling_steps,
            seed=recipe.seed + 1,
            cfg_scale=scale,
        )
        shown = classify(classifier, classifier_inputs, pixels)
        results[f"probability_{name}"] = float(shown.gather(1, asked[:, None]).mean())
        results[f"accuracy_{name}"] = _accuracy(shown, asked)
        results[f"confidence_{name}"] = float(shown.amax(1).mean())
        if name == "emerge":
            few = (torch.arange(10)[:, None] * each + torch.arange(min(8, each))).flatten()
            captions = [DIGIT_NAMES[int(digit)] for digit in asked[few]]
            write_contact_sheet(pixels[few], output_dir / "samples.png", captions)
    results["seconds"] = time.monotonic() - start
    return results


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0, or 1 where the model did not reach the target (all is written all the same)."""
    default = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--max-steps", type=int, default=default.max_steps)
    parser.add_argument("--target-probability", type=float, default=default.target_probability)
    options = parser.parse_args(arguments)
    if options.max_steps < 1:
        parser.error(f"--max-steps must be 1 or more, got {options.max_steps}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    recipe = Recipe(seed=options.seed, max_steps=options.max_steps, target_probability=options.target_probability)
    results = make(options.output_dir, recipe)
    for name, value in results.items():
        sys.stdout.write(f"{name} {value:.3f}\n")
    if results["probability_at_stop"] < recipe.target_probability:
        sys.stderr.write(
            f"the target probability {recipe.target_probability} was not reached in {recipe.max_steps} steps\n"
        )
        return 1
    return 0


def _fit(model: nn.Module, loss: Any, count: int, steps: int, batch_size: int, learning_rate: float, seed: int) -> None:
    """Train in place by AdamW with a cosine schedule; `loss` takes rows (B,) of the data and returns a scalar."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        value = loss(torch.randint(count, (batch_size,), generator=generator))
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def _prompted(
    model: nn.Module,
    vq: MAGVITv2,
    family: ImageFamily,
    prompts: PromptTable,
    classifier: tuple[nn.Module, Preprocessing],
    recipe: Recipe,
    digits: Tensor,
) -> float:
    """Mean probability of the prompted digit in images that emerge draws for `digits` (B,)."""
    pixels = sample_digits(
        model, vq, family, prompts, digits, sampler="emerge", steps=recipe.sampling_steps, seed=recipe.seed
    )
    return float(classify(*classifier, pixels).gather(1, digits[:, None]).mean())


def _noisy(pixels: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Pixels with Gaussian noise of up to `scale`, a strength a row."""
    strength = scale * torch.rand(pixels.shape[0], 1, 1, 1, generator=generator)
    return pixels + strength * torch.randn(pixels.shape, generator=generator)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows (B, classes) whose highest score is their label's (B,)."""
    return float((scores.argmax(-1) == labels).float().mean())


@torch.no_grad()
def _clip_logits(
    clip: CLIPModel, preprocessing: Preprocessing, tokenizer: PreTrainedTokenizerFast, pixels: Tensor
) -> Tensor:
    """How near images are to the ten prompts; (B, 3, H, W) -> (B, 10)."""
    texts = tokenizer([digit_prompt(digit) for digit in range(10)], padding=True, return_tensors="pt")
    output = clip(
        input_ids=texts["input_ids"],
        attention_mask=texts["attention_mask"],
        pixel_values=preprocessing(pixels),
    )
    return output.logits_per_image


def _save(folder: Path, model: Any, tokenizer: PreTrainedTokenizerFast | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
