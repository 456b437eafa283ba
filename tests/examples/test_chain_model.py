"""The word problems that the approximate modes are measured on: right chains, rows that score, a folder that loads."""

import importlib.util
import random
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import maskgrpo_plugin.models
from maskgrpo_plugin.rewards import score


@pytest.fixture(scope="module")
def chain():
    """The module benchmarks/make_chain_model.py."""
    path = Path(__file__).parents[2] / "benchmarks" / "make_chain_model.py"
    spec = importlib.util.spec_from_file_location("make_chain_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokenizer(chain):
    return chain.make_chain_tokenizer()


@pytest.fixture(scope="module")
def problems(chain):
    rng = random.Random(0)
    return [(steps, chain.draw_problem(rng, steps)) for steps in range(1, 6) for _ in range(200)]


def totals(question):
    """Every number on the way, read off the sentences of a question."""
    first, *steps, last = question.split(". ")
    numbers = [int(re.search(r"\d+", first)[0])]
    for step in steps:
        operand = int(re.search(r"\d+", step)[0])
        adds = any(verb in step for verb in ("buys", "finds", "gets"))
        assert adds != any(verb in step for verb in ("eats", "loses", "sells"))
        numbers.append(numbers[-1] + (operand if adds else -operand))
    assert last.startswith("How many")
    return numbers


def test_chains_are_right(problems):
    for steps, problem in problems:
        numbers = totals(problem.question)
        *lines, result = problem.chain.split("\n")
        assert len(lines) == steps == len(numbers) - 1
        sentences = problem.question.split(". ")[1:-1]
        for line, sentence, before, after in zip(lines, sentences, numbers[:-1], numbers[1:], strict=True):
            a, sign, b, c = re.search(r"(\d+)([-+])(\d+)=(\d+)", line).groups()
            assert (int(a), int(c)) == (before, after)
            assert after == (before + int(b) if sign == "+" else before - int(b))
            assert re.search(r"[A-Z][a-z]+day", line)[0] == re.search(r"[A-Z][a-z]+day", sentence)[0]
        assert result == f"#### {problem.answer}" and problem.answer == numbers[-1]
        assert all(10 <= number <= 99 for number in numbers)
        assert score("gsm8k", problem.chain, str(problem.answer))["acc"] == 1
        assert score("gsm8k", problem.chain, str(problem.answer + 1))["acc"] == 0


def test_texts_are_tokens_and_fit(chain, tokenizer, problems):
    lengths = []
    for steps, problem in problems:
        for text in (problem.question, problem.chain):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text
        lengths.append((steps, len(ids)))
    for stage in chain.CURRICULUM:
        assert stage.length % chain.BLOCK == 0
        assert max(n for steps, n in lengths if steps in stage.steps) < stage.length
    assert max(n for _, n in lengths) > 3 * min(n for _, n in lengths)


def test_encode_pads_prompts_left_and_fills_responses(chain, tokenizer, problems):
    chosen = [problems[0][1], problems[-1][1]]
    prompts, responses = chain.encode(tokenizer, chosen, 64)
    assert responses.shape == (2, 64)
    for problem, prompt, response in zip(chosen, prompts, responses, strict=True):
        assert tokenizer.decode(prompt).replace("<|pad|>", "") == f"<|bos|>{problem.question}"
        assert tokenizer.decode(response).replace("<|endoftext|>", "") == problem.chain
        assert response[-1] == tokenizer.eos_token_id
    with pytest.raises(ValueError, match="too short"):
        chain.encode(tokenizer, chosen, 16)


def test_training_canvases_are_those_of_block_decoding(chain):
    mask, eos, vocabulary = 50, 49, 51
    rng = torch.Generator().manual_seed(0)
    prompts = torch.randint(0, 40, (64, 5), generator=rng)
    responses = torch.randint(0, 40, (64, 48), generator=rng)
    for row, length in enumerate(torch.randint(1, 48, (64,), generator=rng).tolist()):
        responses[row, length:] = eos
    table = torch.randn(64, 53, vocabulary, generator=rng)
    seen = []

    def model(canvas):
        seen.append(canvas)
        return SimpleNamespace(logits=table)

    loss = chain.block_loss(model, prompts, responses, mask, eos, torch.Generator().manual_seed(1))
    (canvas,) = seen
    assert torch.equal(canvas[:, :5], prompts)
    losses, blocks = [], set()
    for row in range(64):
        hidden = (canvas[row, 5:] == mask).tolist()
        start = hidden.index(True) // 16 * 16
        blocks.add(start)
        assert all(hidden[start + 16 :]) and start <= (responses[row] != eos).sum()
        assert torch.equal(canvas[row, 5:][~torch.tensor(hidden)], responses[row][~torch.tensor(hidden)])
        for place in range(start, start + 16):
            if hidden[place]:
                losses.append(-table[row, 5 + place].log_softmax(-1)[responses[row, place]])
    assert blocks == {0, 16, 32}
    torch.testing.assert_close(loss, torch.stack(losses).mean())


def test_validation_problems_are_never_trained_on(chain):
    held_out = {row["prompt"][0]["content"] for row in chain.validation_rows(100)}
    assert len(held_out) == 100
    draws = chain.draw_problems(random.Random(0), chain.STEPS, held_out=False)
    other = chain.draw_problems(random.Random(0), chain.STEPS, held_out=True)
    assert not held_out & {next(draws).question for _ in range(1000)}
    assert not {next(draws).question for _ in range(500)} & {next(other).question for _ in range(500)}


def test_pretraining_lowers_the_loss_and_the_folder_loads(chain, tmp_path):
    small = replace(chain.RECIPE, d_model=32, n_layers=1, n_heads=2, mlp_hidden_size=64, batch_size=8)
    recipe = replace(small, max_steps=30, evaluation_rows=2)
    measured, losses = chain.make(tmp_path, recipe, rows=5)
    assert len(losses) == 30 and 0 <= measured <= 1
    assert sum(losses[20:]) < sum(losses[:10])

    maskgrpo_plugin.models.register()
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert type(model).__name__ == "LLaDAModelLM"
    assert model.config.mask_token_id == tokenizer.mask_token_id
    rows = pq.read_table(tmp_path / "validation.parquet").to_pylist()
    assert len(rows) == 5 and rows[0]["extra_info"]["task"] == "gsm8k"
    text = tokenizer.apply_chat_template(rows[0]["prompt"], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == f"<|bos|>{rows[0]['prompt'][0]['content']}"
    assert torch.isfinite(model(ids).logits).all()
