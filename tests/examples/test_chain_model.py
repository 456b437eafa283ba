"""The word problems that the approximate modes are measured on: right chains, rows that score, a folder that loads."""

import importlib.util
import random
import re
import sys
import zlib
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from example_modules import load_example
from hydra import compose, initialize_config_dir
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from maskgrpo_plugin.rewards import score
from maskgrpo_plugin.trainer.sft_checks import check_sft
from maskgrpo_plugin.trainer.sft_data import read_sources

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def chain():
    """The module benchmarks/make_chain_model.py."""
    path = ROOT / "benchmarks" / "make_chain_model.py"
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


def test_texts_are_tokens(tokenizer, problems):
    for _, problem in problems:
        for text in (problem.question, problem.chain):
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert tokenizer.unk_token_id not in ids and tokenizer.decode(ids) == text


def test_validation_problems_are_never_trained_on(chain):
    held_out = {row["prompt"][0]["content"] for row in chain.reward_rows("validation", 100)}
    assert len(held_out) == 100
    draws = chain.draw_problems(random.Random(0), chain.STEPS, held_out=False)
    other = chain.draw_problems(random.Random(0), chain.STEPS, held_out=True)
    assert not held_out & {next(draws).question for _ in range(1000)}
    assert not held_out & {row["prompt"][0]["content"] for row in chain.reward_rows("train", 500)}
    for split in ("train", "validation"):  # by the question alone, whichever draw it came from
        questions = [row["prompt"][0]["content"] for row in chain.reward_rows(split, 200)]
        assert {zlib.crc32(question.encode()) % 5 == 0 for question in questions} == {split == "validation"}
    assert not {next(draws).question for _ in range(500)} & {next(other).question for _ in range(500)}


@pytest.mark.parametrize(("task", "steps"), [("worked_2", range(2, 3)), ("worked", range(2, 6))])
def test_problems_fit_the_task_of_the_comparison(chain, tokenizer, task, steps):
    lengths = dict(override.split("=") for override in load_example("cells", "methods").TASKS[task])
    for problem in islice(chain.draw_problems(random.Random(0), steps, held_out=False), 500):
        chat = [{"role": "user", "content": problem.question}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt, answer = (len(tokenizer.encode(part, add_special_tokens=False)) for part in (text, problem.chain))
        assert prompt <= int(lengths["data.max_prompt_length"])
        assert 24 < answer < int(lengths["data.max_response_length"])


def test_every_stage_can_be_trained_as_the_script_says(chain, tmp_path):
    """The rows of each stage fit into the length that the script gives it, with room for the blocks of decoding."""
    chain.make(tmp_path, seed=0, train_rows=300, rows=5)
    script = (ROOT / "benchmarks" / "chain.sh").read_text()
    stages = re.findall(r"^train (\d) (\S+) (\d+) (\d+) (\w+)$", script, re.MULTILINE)
    assert len(stages) == len(chain.STAGES)
    for number, (stage, start, steps, longest, scheduler) in enumerate(stages, start=1):
        assert (int(stage), start) == (number, f'"$run/{"initial" if number == 1 else f"model_{number - 1}"}"')
        with initialize_config_dir(str(ROOT / "benchmarks"), version_base=None):
            config = compose(
                "sft_chain",
                [
                    f"hydra.searchpath=[file://{ROOT}/configs,pkg://verl.trainer.config]",
                    f"chain_dir={tmp_path}",
                    f"stage={stage}",
                    f"data.max_length={longest}",
                    f"optim.lr_scheduler_type={scheduler}",
                    f"trainer.total_training_steps={steps}",
                ],
            )
        check_sft(config)
        tokenizer = AutoTokenizer.from_pretrained(config.model.path)
        (source,) = read_sources(config, AutoConfig.from_pretrained(config.model.path), tokenizer)
        assert len(source.train) == 300 and len(source.validation) == 256
        prompts = [len(example.prompt_ids) for example in source.train]
        answers = [len(example.answer_ids) for example in source.train]
        length = -(-max(answers) // config.denoising.block_length) * config.denoising.block_length
        assert max(prompts) + length == int(longest)


def test_the_folder_loads_and_its_rows_score(chain, tmp_path):
    chain.make(tmp_path, seed=0, train_rows=3, rows=5)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "initial").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "initial")
    assert type(model).__name__ == "LLaDAModelLM"
    assert model.config.mask_token_id == tokenizer.mask_token_id
    rows = pq.read_table(tmp_path / "data" / "validation.parquet").to_pylist()
    assert len(rows) == 5 and rows[0]["extra_info"]["task"] == "gsm8k"
    text = tokenizer.apply_chat_template(rows[0]["prompt"], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert tokenizer.decode(ids[0]) == f"<|bos|>{rows[0]['prompt'][0]['content']}"
    assert torch.isfinite(model(ids).logits).all()
