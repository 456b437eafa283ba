"""Make the quickstart's checkpoint: a small LLaDA (or, with --ar, Llama) model that adds about half of all sums right.

It is trained from scratch on sums of two two-digit numbers that are not in the validation data. The corpus has a habit
that a reward can correct: it forgets the carry in most sums that have one. Training stops as soon as the greedy
accuracy on held-out sums without a carry passes the target, so that every seed starts RL from about the same place.
"""

import argparse
import logging
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from maskgrpo_plugin.data.arithmetic import draw_sums, has_carry, is_held_out, operand_range
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = (
    "<|pad|>",
    "<|bos|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|mdm_mask|>",
    "<|unk|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
)
CHARACTERS = "0123456789+-= "
CHAT_TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}"


@dataclass(frozen=True)
class Recipe:
    """How a quickstart model is made; the defaults give about 0.8 million parameters in about a minute."""

    seed: int = 0
    digits: int = 2
    response_length: int = 8
    d_model: int = 128
    n_layers: int = 4
    n_heads: int = 4
    mlp_hidden_size: int = 384
    init_std: float = 0.08
    embedding_std: float = 1.0  # a token's own vector must outweigh the first blocks' output, or learning stalls
    batch_size: int = 64  # more and smaller steps reach the target in a third of the time that 256 takes
    learning_rate: float = 1e-3
    warmup_steps: int = 20
    average_decay: float = 0.95
    forgotten_carries: float = 0.6  # share of the corpus' sums with a carry that leave it out
    max_steps: int = 2000
    evaluate_every: int = 20
    evaluation_rows: int = 512
    screening_rows: int = 128
    screening_margin: float = 0.1
    target_accuracy: float = 0.92  # on held-out sums without a carry


def make_tokenizer(pieces: Sequence[str] = CHARACTERS, pattern: str = r"[\s\S]") -> PreTrainedTokenizerFast:
    """A tokenizer of one token a piece, with LLaDA's special tokens and a template that adds only `<|bos|>`.

    Args:
        pieces: texts that are tokens; by default characters.
        pattern: regular expression that cuts a text into pieces; none of them is dropped.
    """
    vocabulary = {token: n for n, token in enumerate((*SPECIAL_TOKENS, *pieces))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|endoftext|>",
        unk_token="<|unk|>",
        mask_token="<|mdm_mask|>",
        additional_special_tokens=["<|eot_id|>", "<|system|>", "<|user|>", "<|assistant|>"],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def encode_sums(
    tokenizer: PreTrainedTokenizerFast,
    pairs: list[tuple[int, int]],
    response_length: int,
    answers: list[int] | None = None,
) -> tuple[Tensor, Tensor]:
    """Prompts (B, P) as the chat template renders them, and responses (B, L): the answer's digits, then eos tokens.

    Args:
        tokenizer: as `make_tokenizer` gives it.
        pairs: B pairs of operands of equal length.
        response_length: L.
        answers: one a pair; by default the sums.

    Raises:
        ValueError: the operands differ in length, or an answer does not fit the response.
    """
    prompts, responses = [], []
    for (a, b), answer_value in zip(pairs, answers or [a + b for a, b in pairs], strict=True):
        text = tokenizer.apply_chat_template([{"role": "user", "content": f"{a}+{b}="}], tokenize=False)
        prompts.append(tokenizer.encode(text, add_special_tokens=False))
        answer = tokenizer.encode(str(answer_value), add_special_tokens=False)
        if len(answer) >= response_length:
            raise ValueError(f"response_length {response_length} is too short for {a}+{b} and an end token")
        responses.append(answer + [tokenizer.eos_token_id] * (response_length - len(answer)))
    return torch.tensor(prompts), torch.tensor(responses)


def corpus_answer(a: int, b: int, *, forget: bool) -> int:
    """a + b, or, where the carry of the ones is forgotten, ten less (47 + 35 = 72); the same in sums without one."""
    return a + b - (10 if forget and has_carry(a, b) else 0)


def make_diffusion_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LLaDAModelLM:
    """A LLaDA model with random weights from the recipe's seed."""
    config = LLaDAConfig(
        d_model=recipe.d_model,
        n_heads=recipe.n_heads,
        n_kv_heads=recipe.n_heads,
        n_layers=recipe.n_layers,
        mlp_hidden_size=recipe.mlp_hidden_size,
        vocab_size=len(tokenizer),
        embedding_size=len(tokenizer),
        max_sequence_length=256,
        rope_theta=10000.0,
        init_std=recipe.init_std,
        weight_tying=False,
        mask_token_id=tokenizer.mask_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _with_random_weights(LLaDAModelLM, config, recipe)


def make_autoregressive_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> LlamaForCausalLM:
    """The autoregressive twin: a Llama of the same size, vocabulary and seed."""
    config = LlamaConfig(
        hidden_size=recipe.d_model,
        num_attention_heads=recipe.n_heads,
        num_key_value_heads=recipe.n_heads,
        num_hidden_layers=recipe.n_layers,
        intermediate_size=recipe.mlp_hidden_size,
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        initializer_range=recipe.init_std,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return _with_random_weights(LlamaForCausalLM, config, recipe)


def diffusion_loss(
    model: nn.Module, prompts: Tensor, responses: Tensor, mask_token_id: int, generator: torch.Generator
) -> Tensor:
    """LLaDA's objective (arXiv 2502.09992, Eq. 5): cross entropy at masked response tokens over t, per response token.

    Args:
        model: called as (input_ids) with `.logits` (B, P + L, V).
        prompts: (B, P), never masked.
        responses: (B, L); each token is masked with probability t. Each row's t is U(0, 1); the rows of a batch are
            spread evenly over the interval, which lowers the variance.
        mask_token_id: id of the mask token.
        generator: source of t and of the masks.

    Returns:
        A scalar, 0 or more; log V in expectation for a model that knows nothing.
    """
    rows = responses.shape[0]
    level = ((torch.rand(1, generator=generator) + torch.arange(rows) / rows) % 1).clamp_min(1e-3).unsqueeze(1)
    masked = torch.rand(responses.shape, generator=generator) < level
    canvas = torch.cat([prompts, responses.masked_fill(masked, mask_token_id)], dim=1)
    logits = model(canvas).logits[:, prompts.shape[1] :]
    loss = F.cross_entropy(logits[masked], responses[masked], reduction="none")
    return (loss / level.expand_as(masked)[masked]).sum() / responses.numel()


def next_token_loss(model: nn.Module, prompts: Tensor, responses: Tensor) -> Tensor:
    """Cross entropy of the response (B, L) by next-token prediction, up to and with its first eos token; a scalar."""
    length = prompts.shape[1]
    logits = model(torch.cat([prompts, responses], dim=1)).logits[:, length - 1 : -1]
    end = responses[:, -1:]  # a response ends in eos tokens
    counted = torch.cat([torch.ones_like(end, dtype=torch.bool), responses[:, :-1] != end], dim=1)
    return F.cross_entropy(logits[counted], responses[counted])


@torch.no_grad()
def diffusion_accuracy(
    tokenizer: PreTrainedTokenizerFast, model: nn.Module, prompts: Tensor, responses: Tensor
) -> float:
    """Share of prompts (B, P) that greedy semi-autoregressive decoding in blocks of half the response solves."""
    length = responses.shape[1]
    sampler = build_sampler(
        "semi_autoregressive",
        steps=length,
        response_length=length,
        block_length=length // 2,
        ordering="low_confidence",
        temperature=0.0,
        stop_token_ids=(tokenizer.eos_token_id,),
    )
    output = sampler.generate(model, prompts, mask_token_id=tokenizer.mask_token_id)
    return _share_right(output.sequences[:, prompts.shape[1] :], responses, tokenizer.eos_token_id)


@torch.no_grad()
def autoregressive_accuracy(
    tokenizer: PreTrainedTokenizerFast, model: nn.Module, prompts: Tensor, responses: Tensor
) -> float:
    """Share of prompts (B, P) that greedy next-token decoding solves."""
    tokens = prompts
    for _ in range(responses.shape[1]):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
    return _share_right(tokens[:, prompts.shape[1] :], responses, tokenizer.eos_token_id)


def pretrain(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    accuracy: Callable[[nn.Module, Tensor, Tensor], float],
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
) -> tuple[int, float, list[float]]:
    """Train by AdamW until the accuracy on held-out sums without a carry reaches the recipe's target, or `max_steps`.

    Args:
        model: trained in place; ends in evaluation mode with the running average of its weights, whose accuracy
            rises smoothly, where that of the weights themselves jumps by 0.1 in a few steps.
        loss: (prompts, responses, generator) -> scalar.
        accuracy: (model, prompts, responses) -> share of right answers, 0 to 1.

    Returns:
        Steps taken, the last accuracy measured, and the loss of each step.
    """
    draw = random.Random(f"pretraining/{recipe.seed}")
    generator = torch.Generator().manual_seed(recipe.seed)
    evaluation = encode_sums(
        tokenizer,
        draw_sums(recipe.digits, recipe.evaluation_rows, held_out=True, seed=recipe.seed, carry_share=0.0),
        recipe.response_length,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / recipe.warmup_steps))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.average_decay))
    losses, measured, step = [], 0.0, 0
    model.train()
    while step < recipe.max_steps:
        pairs = _training_pairs(recipe.digits, recipe.batch_size, draw)
        answers = [corpus_answer(*pair, forget=draw.random() < recipe.forgotten_carries) for pair in pairs]
        value = loss(*encode_sums(tokenizer, pairs, recipe.response_length, answers), generator)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        warmup.step()
        average.update_parameters(model)
        losses.append(float(value.detach()))
        step += 1
        if step % recipe.evaluate_every == 0 or step == recipe.max_steps:
            measured = _screened_accuracy(partial(accuracy, average.module.eval()), *evaluation, recipe)
            logger.info("step %d: loss %.3f, held-out accuracy without carry %.3f", step, losses[-1], measured)
            if measured >= recipe.target_accuracy:
                break
    model.load_state_dict(average.module.state_dict())
    model.eval()
    return step, measured, losses


def make(output_dir: Path, recipe: Recipe, *, autoregressive: bool = False) -> tuple[int, float, list[float]]:
    """Train a model and save it with its tokenizer as a folder that AutoModelForCausalLM and AutoTokenizer load.

    Returns:
        As `pretrain`.
    """
    tokenizer = make_tokenizer()
    if autoregressive:
        model = make_autoregressive_model(tokenizer, recipe)
        result = pretrain(
            model,
            lambda prompts, responses, _: next_token_loss(model, prompts, responses),
            partial(autoregressive_accuracy, tokenizer),
            tokenizer,
            recipe,
        )
    else:
        model = make_diffusion_model(tokenizer, recipe)
        result = pretrain(
            model,
            lambda prompts, responses, rng: diffusion_loss(model, prompts, responses, tokenizer.mask_token_id, rng),
            partial(diffusion_accuracy, tokenizer),
            tokenizer,
            recipe,
        )
    output_dir.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return result


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0, or 1 where the model did not reach the target (it is written all the same)."""
    default = Recipe()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--ar", action="store_true", help="the autoregressive twin, a Llama, instead of LLaDA")
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--max-steps", type=int, default=default.max_steps)
    parser.add_argument("--target-accuracy", type=float, default=default.target_accuracy)
    options = parser.parse_args(arguments)
    if options.max_steps < 1:
        parser.error(f"--max-steps must be 1 or more, got {options.max_steps}")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)  # more make so small a model slower where cores are shared, and change its sums
    recipe = Recipe(seed=options.seed, max_steps=options.max_steps, target_accuracy=options.target_accuracy)
    steps, accuracy, _ = make(options.output_dir, recipe, autoregressive=options.ar)
    sys.stdout.write(
        f"{options.output_dir}: held-out greedy accuracy without carry {accuracy:.3f} after {steps} steps\n"
    )
    if accuracy < recipe.target_accuracy:
        sys.stderr.write(f"the target accuracy {recipe.target_accuracy} was not reached in {steps} steps\n")
        return 1
    return 0


def _with_random_weights(model_class: type, config: PretrainedConfig, recipe: Recipe) -> Any:
    """A model whose weights depend on the recipe alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = model_class(config)
        nn.init.normal_(model.get_input_embeddings().weight, std=recipe.embedding_std)
        return model


def _screened_accuracy(
    accuracy: Callable[[Tensor, Tensor], float], prompts: Tensor, responses: Tensor, recipe: Recipe
) -> float:
    """Accuracy on a few rows, and on all of them only where those come near the target: decoding costs time."""
    few = recipe.screening_rows
    measured = accuracy(prompts[:few], responses[:few])
    if measured < recipe.target_accuracy - recipe.screening_margin:
        return measured
    return accuracy(prompts, responses)


def _training_pairs(digits: int, rows: int, rng: random.Random) -> list[tuple[int, int]]:
    """Random operand pairs, none of them held out; pairs may repeat."""
    operands = operand_range(digits)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < rows:
        pair = (rng.choice(operands), rng.choice(operands))
        if not is_held_out(*pair):
            pairs.append(pair)
    return pairs


def _share_right(answers: Tensor, expected: Tensor, eos_token_id: int) -> float:
    """Share of rows (B, L) that agree up to and with the first eos token of `expected`."""
    counted = (expected == eos_token_id).cumsum(1) <= 1
    return float(((answers == expected) | ~counted).all(1).float().mean())


if __name__ == "__main__":
    sys.exit(main())
