"""Make what the digits example trains from: image tokenizer, classifier, CLIP, a model with random weights, and rows.

The scikit-learn package has 1797 handwritten digits of 8 × 8 pixels. The image tokenizer (MAGVIT-v2 in small) and the
model (MMaDA's layout in small) learn from one part of them, the two scorers from another, so that they judge images of
pixels they never saw; a third is held out. The supervised rows have habits that a reward can correct: captions name a
wrong digit in part, and so do answers about images. configs/sft_digits.yaml and sft_digits_mmu.yaml train on them.
"""

import argparse
import logging
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from digit_data import WORDS, caption_rows, conversation_rows, digit_prompt, digit_rows, question_rows
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ResNetConfig, ResNetForImageClassification

from maskgrpo_plugin.data.rows import Row, write_parquet
from maskgrpo_plugin.models.image_scorers import Preprocessing
from maskgrpo_plugin.models.magvitv2 import MAGVITv2, MAGVITv2Config
from maskgrpo_plugin.models.mmada import MMadaConfig, MMadaModelLM

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
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"


@dataclass(frozen=True)
class Recipe:
    """How models and rows are made; the defaults take about a minute on one core."""

    seed: int = 0
    generator_images: int = 1000  # for image tokenizer and model
    held_out_images: int = 197  # the scorers have the others
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
    # supervised rows
    sft_rows: int = 8000
    wrong_captions: float = 0.25  # share of the captions that name another digit
    wrong_answers: float = 0.6  # share of the answers about odd digits that name the next one
    # scorers
    scorer_steps: int = 300
    scorer_batch_size: int = 64
    scorer_learning_rate: float = 2e-3
    scorer_noise: float = 0.2
    # rows of RL
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
    """The images in three parts that share none: for generators, for scorers, and held out, in the seed's order."""
    from sklearn.datasets import load_digits as load

    data = load()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(recipe.seed))
    pixels = torch.tensor(data.images, dtype=torch.float32)[order, None].expand(-1, 3, -1, -1) / 8 - 1
    digits = Digits(pixels.contiguous(), torch.tensor(data.target)[order])
    first, last = recipe.generator_images, len(digits) - recipe.held_out_images
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


def sft_rows(codes: tuple[Tensor, Tensor], labels: tuple[Tensor, Tensor], recipe: Recipe) -> dict[str, list[Row]]:
    """What supervised training learns from and is validated on, by the file it goes to.

    Args:
        codes: (B, 16) of the generators' images, and of the held-out ones.
        labels: (B,) digits of both.
    """
    drawn = {"rows": recipe.sft_rows, "seed": recipe.seed}
    return {
        "sft/train": caption_rows(codes[0], labels[0], wrong=recipe.wrong_captions, **drawn),
        "sft/validation": caption_rows(codes[1], labels[1]),
        "sft_mmu/train": conversation_rows(codes[0], labels[0], wrong=recipe.wrong_answers, **drawn),
        "sft_mmu/validation": conversation_rows(codes[1], labels[1]),
    }


def make(output_dir: Path, recipe: Recipe) -> dict[str, float]:
    """Write `vq`, `classifier`, `clip`, `initial`, and rows: `sft` and `data`, about images `sft_mmu` and `data_mmu`.

    Returns:
        What was measured on held-out images, by name: shares from 0 to 1, a mean square, and `seconds` in all.
    """
    start = time.monotonic()
    generators, scorers, held_out = load_digits(recipe)
    tokenizer, clip_tokenizer = make_tokenizer(), make_tokenizer(with_ends=True)
    classifier, classifier_inputs = train_classifier(scorers, recipe)
    clip, clip_inputs = train_clip(scorers, clip_tokenizer, recipe)
    logger.info("scorers trained after %.0f s", time.monotonic() - start)
    vq = train_vq(generators, recipe)
    logger.info("image tokenizer trained after %.0f s", time.monotonic() - start)

    _save(output_dir / "initial", make_model(tokenizer, vq, recipe), tokenizer)
    _save(output_dir / "vq", vq)
    _save(output_dir / "classifier", classifier)
    classifier_inputs.save(output_dir / "classifier", "ViTImageProcessor")
    _save(output_dir / "clip", clip, clip_tokenizer)
    clip_inputs.save(output_dir / "clip", "CLIPImageProcessor")
    parts = {"train": generators, "validation": held_out}
    codes = {split: vq.get_code(part.pixels) for split, part in parts.items()}
    files = sft_rows(tuple(codes.values()), (generators.labels, held_out.labels), recipe)
    for split, rows in (("train", recipe.train_rows), ("validation", recipe.validation_rows)):
        files[f"data/{split}"] = digit_rows(rows, split)
        files[f"data_mmu/{split}"] = question_rows(codes[split], parts[split].labels, split)
    for name, written in files.items():
        write_parquet(written, output_dir / f"{name}.parquet")

    rebuilt = vq.decode_code(codes["validation"])
    results = {"rebuilt_mse": float(F.mse_loss(rebuilt, held_out.pixels))}
    for name, pixels in (("", held_out.pixels), ("_rebuilt", rebuilt)):
        named = _digit_logits(classifier, classifier_inputs, pixels)
        results[f"classifier_accuracy{name}"] = _accuracy(named, held_out.labels)
        near = _clip_logits(clip, clip_inputs, clip_tokenizer, pixels)
        results[f"clip_accuracy{name}"] = _accuracy(near, held_out.labels)
    return results | {"seconds": time.monotonic() - start}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name, value in make(options.output_dir, Recipe(seed=options.seed)).items():
        sys.stdout.write(f"{name} {value:.3f}\n")
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


def _noisy(pixels: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Pixels with Gaussian noise of up to `scale`, a strength a row."""
    strength = scale * torch.rand(pixels.shape[0], 1, 1, 1, generator=generator)
    return pixels + strength * torch.randn(pixels.shape, generator=generator)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share of rows (B, classes) whose highest score is their label's (B,)."""
    return float((scores.argmax(-1) == labels).float().mean())


@torch.no_grad()
def _digit_logits(classifier: nn.Module, preprocessing: Preprocessing, pixels: Tensor) -> Tensor:
    """Scores of the ten digits; (B, 3, H, W) -> (B, 10)."""
    return classifier(pixel_values=preprocessing(pixels)).logits


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
