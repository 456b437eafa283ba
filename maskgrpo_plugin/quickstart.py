"""`python -m maskgrpo_plugin.quickstart`: what the quickstart starts from, a small model with random weights and sums.

The sums of its supervised training are of two two-digit numbers that are not in the validation data. They have a habit
that a reward can correct: most of those with a carry forget it, so that the trained model adds about half of all sums
right. The reward's own sums are beside them.
"""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PretrainedConfig, PreTrainedTokenizerFast

from maskgrpo_plugin.arguments import CommandParser
from maskgrpo_plugin.data.arithmetic import draw_sums, has_carry, is_held_out, operand_range
from maskgrpo_plugin.data.chats import question_and_answer
from maskgrpo_plugin.data.prepare import arithmetic_rows
from maskgrpo_plugin.data.rows import Row, write_parquet
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM
from maskgrpo_plugin.models.sdar import SDARConfig, SDARForCausalLM

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
    """A quickstart model and its data; the defaults are about 0.45 million parameters."""

    seed: int = 0
    digits: int = 2
    d_model: int = 96
    n_layers: int = 4
    n_heads: int = 4
    mlp_hidden_size: int = 256
    init_std: float = 0.08
    block_size: int = 4  # of the block-diffusion twin
    embedding_std: float = 1.0  # a token's own vector must outweigh the first blocks' output, or learning stalls
    train_rows: int = 8000
    validation_rows: int = 256  # held-out sums without a carry
    forgotten_carries: float = 0.6  # share of the sums with a carry that leave it out
    rl_rows: int = 4000  # sums for the reward
    rl_validation_rows: int = 512
    rl_carries: float = 0.6  # share of these that have a carry


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
    return _with_random_weights(LlamaForCausalLM, LlamaConfig(**_sizes(tokenizer, recipe)), recipe)


def make_block_model(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> SDARForCausalLM:
    """The block-diffusion twin: SDAR's layout, in the same size, vocabulary and seed."""
    config = SDARConfig(
        **_sizes(tokenizer, recipe),
        head_dim=recipe.d_model // recipe.n_heads,
        block_size=recipe.block_size,
        mask_token_id=tokenizer.mask_token_id,
    )
    return _with_random_weights(SDARForCausalLM, config, recipe)


def sft_rows(recipe: Recipe) -> dict[str, list[Row]]:
    """Conversations of one sum each: `train`, some of whose carries are forgotten, and `validation`, held out."""
    draw = random.Random(f"pretraining/{recipe.seed}")
    train = [
        _conversation(a, b, corpus_answer(a, b, forget=draw.random() < recipe.forgotten_carries))
        for a, b in _training_pairs(recipe.digits, recipe.train_rows, draw)
    ]
    held_out = draw_sums(recipe.digits, recipe.validation_rows, held_out=True, seed=recipe.seed, carry_share=0.0)
    return {"train": train, "validation": [_conversation(a, b, a + b) for a, b in held_out]}


def rl_rows(recipe: Recipe) -> dict[str, list[Row]]:
    """Sums for the reward: `train`, and `validation`, which neither training ever sees."""
    return {
        split: arithmetic_rows(recipe.digits, rows, split, seed=recipe.seed, carry_share=recipe.rl_carries)
        for split, rows in (("train", recipe.rl_rows), ("validation", recipe.rl_validation_rows))
    }


INITIAL = {
    "initial": make_diffusion_model,
    "initial_block": make_block_model,
    "initial_ar": make_autoregressive_model,
}


def make(output_dir: Path, recipe: Recipe) -> None:
    """Write the folders of `INITIAL`, which AutoModelForCausalLM loads, and the rows in `data` and `sft`."""
    tokenizer = make_tokenizer()
    for name, build in INITIAL.items():
        build(tokenizer, recipe).save_pretrained(output_dir / name)
        tokenizer.save_pretrained(output_dir / name)
    for folder, splits in (("data", rl_rows(recipe)), ("sft", sft_rows(recipe))):
        for split, rows in splits.items():
            write_parquet(rows, output_dir / folder / f"{split}.parquet")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns 0."""
    parser = CommandParser(prog="python -m maskgrpo_plugin.quickstart", description=__doc__)
    parser.add_argument("--output-dir", type=Path, default=Path("runs/quickstart"), help="default runs/quickstart")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    options = parser.parse_args(arguments)
    make(options.output_dir, Recipe(seed=options.seed))
    sys.stdout.write(f"{options.output_dir}: {', '.join(INITIAL)}, sft, data\n")
    return 0


def _sizes(tokenizer: PreTrainedTokenizerFast, recipe: Recipe) -> dict[str, Any]:
    """The recipe and the tokenizer in the names of transformers' decoders."""
    return {
        "hidden_size": recipe.d_model,
        "num_attention_heads": recipe.n_heads,
        "num_key_value_heads": recipe.n_heads,
        "num_hidden_layers": recipe.n_layers,
        "intermediate_size": recipe.mlp_hidden_size,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 256,
        "initializer_range": recipe.init_std,
        "tie_word_embeddings": False,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _with_random_weights(model_class: type, config: PretrainedConfig, recipe: Recipe) -> Any:
    """A model whose weights depend on the recipe alone; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        model = model_class(config)
        nn.init.normal_(model.get_input_embeddings().weight, std=recipe.embedding_std)
        return model


def _training_pairs(digits: int, rows: int, rng: random.Random) -> list[tuple[int, int]]:
    """Random operand pairs, none of them held out; pairs may repeat."""
    operands = operand_range(digits)
    pairs: list[tuple[int, int]] = []
    while len(pairs) < rows:
        pair = (rng.choice(operands), rng.choice(operands))
        if not is_held_out(*pair):
            pairs.append(pair)
    return pairs


def _conversation(a: int, b: int, answer: int) -> Row:
    return {"messages": question_and_answer(f"{a}+{b}=", str(answer))}


if __name__ == "__main__":
    sys.exit(main())
