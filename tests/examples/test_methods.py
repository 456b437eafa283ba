"""The comparison of methods: what a step of each costs and does to the weights, that cells go on, and the tables."""

import json
import os
from dataclasses import replace
from itertools import cycle, islice
from unittest.mock import patch

import pytest
import torch
from example_modules import load_example
from omegaconf import OmegaConf

from maskgrpo_plugin.rewards import score

METHODS = [
    "agrpo",
    "bgpo",
    "coupled_grpo",
    "gdsd",
    "justgrpo",
    "maskgrpo",
    "spg",
    "tracerl_block",
    "wd1",
]  # every kind of loss
PASSES = {  # per completion: new, old, reference; see the table of docs/methods.md
    "maskgrpo": (12, 12, 12),
    "maskgrpo_image": (6, 6, 6),
    "maskgrpo_digits": (2, 2, 2),
    "diffu_grpo": (12, 12, 12),
    "unigrpo": (5, 5, 5),
    "coupled_grpo": (6, 6, 6),
    "espo": (32, 32, 32),
    "gdpo": (3, 3, 0),
    "bgpo": (16, 16, 0),
    "ebpo": (16, 16, 0),
    "gdsd": (32, 32, 32),
    "spg": (8, 0, 0),
    "wd1": (12, 0, 0),
    "justgrpo": (8, 0, 0),
    "agrpo": (24, 0, 0),
    "tracerl": (1, 1, 0),  # eight steps are one slice
}
BY_ANSWER = {  # of an answer of n tokens with its end, one revealed per step
    "cj_grpo": lambda n: (n, n, n),
    "d2": lambda n: (12 * min(n, 8),) * 3,
    # seven tokens of the prompt: the first block of four has one token of the answer, the second four
    "tracerl_block": lambda n: (min(max(n - 1, 1), 4),) * 2 + (0,),
}
SMALL = [
    "data.train_batch_size=2",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
]


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    """A run in this process chooses its platform in the environment, and opens its process group."""
    with patch.dict(os.environ):
        yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def harness():
    return load_example("harness", "methods")


@pytest.fixture(scope="module")
def train():
    return load_example("train", "methods")


@pytest.fixture(scope="module")
def cells():
    return load_example("cells", "methods")


@pytest.fixture(scope="module")
def folder(tiny_run, make_model):
    """The tiny run with a block-diffusion twin, `model_block`."""
    tokenizer = make_model.make_tokenizer()
    recipe = replace(make_model.Recipe(), d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=64)
    make_model.make_block_model(tokenizer, recipe).save_pretrained(tiny_run / "model_block")
    tokenizer.save_pretrained(tiny_run / "model_block")
    return tiny_run


def options_of(train, folder, *arguments, model="model"):
    places = ["--model", str(folder / model), "--data", str(folder / "data"), "--lr", "1e-3"]
    return train.make_parser().parse_args([*places, *arguments, *SMALL])


def make_run(train, cells, folder, method, *overrides):
    model, config = ("model_block", "quickstart_block") if method == "tracerl_block" else ("model", "quickstart")
    given = ["--config", config, "--output", str(folder / "cells.jsonl"), *overrides]
    options = options_of(train, folder, *given, model=model)
    return train.make_run(cells.Cell("sums", method, 0, 1e-3), options)


def step(run, harness, folder, rewards, monkeypatch):
    """One step with the given rewards, again and again; the answers' lengths with their ends."""
    given, answers = cycle(rewards), []
    monkeypatch.setattr(run, "_scores", lambda rows, *_: [{"score": next(given)} for _ in rows])

    def roll_out(*arguments):
        rollouts = type(run).roll_out(run, *arguments)
        for response in rollouts.data["responses"].unbind():
            stops = [token in run.family.stop_token_ids for token in response.tolist()]
            answers.append(stops.index(True) + 1 if any(stops) else len(stops))
        return rollouts

    monkeypatch.setattr(run, "roll_out", roll_out)
    numbers = [2 * run.step, 2 * run.step + 1]
    rows = harness.read_rows(folder / "data", "train")
    run.train([rows[n] for n in numbers], numbers)
    return answers


@pytest.mark.parametrize(("method", "remasking"), [("maskgrpo_random", "random"), ("maskgrpo_ar", "ar_like")])
def test_steps_of_the_ablation_are_maskgrpo_without_truncation(train, cells, folder, method, remasking):
    estimator = make_run(train, cells, folder, method).estimator
    assert estimator.remasking == remasking
    assert estimator.levels == pytest.approx([*(j / 12 for j in range(1, 12)), 0.999], abs=1e-5)


@pytest.mark.parametrize(("method", "block"), [("justgrpo", 1), ("ebpo", 16)])
def test_the_blocks_of_a_task_are_the_sampler_s_but_where_a_method_has_its_own(train, cells, folder, method, block):
    options = options_of(train, folder, "--output", str(folder / "cells.jsonl"))
    run = train.make_run(cells.Cell("worked_2", method, 0, 1e-3), options)
    sampler = "actor_rollout_ref.rollout.sampler.options"
    assert OmegaConf.select(run.config, sampler) == {"steps": 32, "block_length": block}
    assert OmegaConf.select(run.evaluation, sampler) == {"steps": 32, "block_length": 16}
    assert run.config.algorithm.estimation.options.get("block_length", 16) == 16


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_of_a_method_cost_its_passes_and_learn_only_from_advantages(
    harness, train, cells, folder, monkeypatch, method
):
    run = make_run(train, cells, folder, method, "actor_rollout_ref.actor.optim.weight_decay=0")
    start = {name: p.detach().clone() for name, p in run.model.named_parameters()}
    answers = step(run, harness, folder, [1.0], monkeypatch)
    assert all(torch.equal(p, start[name]) for name, p in run.model.named_parameters())
    answers += step(run, harness, folder, [1.0, 0.0], monkeypatch)
    assert any(not torch.equal(p, start[name]) for name, p in run.model.named_parameters())

    expected = [BY_ANSWER[method](answer) if method in BY_ANSWER else PASSES[method] for answer in answers]
    counts = run.counts
    assert (counts.new, counts.old, counts.reference) == tuple(map(sum, zip(*expected, strict=True)))
    assert counts.rollouts == 16 and 0 < counts.sampling <= 16 * 8 and counts.seconds > 0


def test_a_run_goes_on_where_it_was_saved(harness, train, cells, folder, monkeypatch, tmp_path):
    def run_of():
        return make_run(train, cells, folder, "gdpo")

    rows = harness.read_rows(folder / "data", "train")
    whole, first, second = run_of(), run_of(), run_of()
    for run in (whole, first, second):
        rewards = cycle([1.0, 0.0, 0.5])
        monkeypatch.setattr(run, "_scores", lambda rows, *_, rewards=rewards: [{"score": next(rewards)} for _ in rows])
    for run in (whole, first):
        run.train(rows[:2], [0, 1])
    train.save(first, tmp_path / "state.pt")
    train.load(second, tmp_path / "state.pt")
    for _ in range(8):
        next(rewards)
    for run in (whole, second):
        run.train(rows[2:4], [2, 3])
    both = zip(whole.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in both)
    assert replace(whole.counts, seconds=0) == replace(second.counts, seconds=0) and second.step == 2


def test_done_cells_are_left_out_and_rates_come_from_the_search(train, cells, folder, tmp_path, capsys):
    output = tmp_path / "cells.jsonl"
    common = ["--output", str(output), "--method", "gdpo", "--search-steps", "1", "--every", "1", "--steps", "1"]
    places = ["--model", str(folder / "model"), "--data", str(folder / "data")]
    assert train.main([*places, *common, *SMALL]) == 2
    assert "gdpo" in capsys.readouterr().err
    lines = [
        {"task": "sums", "method": "gdpo", "seed": 100, "rate": rate, "search": True, "step": 1, "accuracy": a}
        for rate, a in zip(cells.RATES, (0.5, 0.75, 0.75), strict=True)
    ]
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert train.main([*places, *common, "--minutes", "0", *SMALL]) == 0
    assert len(output.read_text().splitlines()) == 3
    assert train.main([*places, *common, *SMALL]) == 0
    written = [json.loads(line) for line in output.read_text().splitlines()[3:]]
    assert [(line["rate"], line["step"], line["rows"]) for line in written] == [(1e-4, 0, 16), (1e-4, 1, 16)]
    assert written[1]["rollouts"] == 8 and written[1]["new"] == 24
    assert train.main([*places, *common, *SMALL]) == 0
    assert len(output.read_text().splitlines()) == 5


@pytest.mark.parametrize(
    ("accuracies", "beyond", "chosen"),
    [((0.5, 0.75, 0.75), None, 1e-4), ((0.5, 0.6, 0.75), 1e-3, 3e-4), ((0.75, 0.75, 0.5), 1e-5, 3e-5)],
)
def test_the_search_goes_one_rate_beyond_an_end(cells, accuracies, beyond, chosen):
    def found(pairs):
        row = {"step": 16}
        return {cells.Cell("sums", "wd1", 100, r, search=True): [row | {"accuracy": a}] for r, a in pairs}

    first = list(zip(cells.RATES, accuracies, strict=True))
    asked = [cell.rate for cell in cells.search_cells(found(first), ["wd1"], 100, 16)]
    assert asked == [*cells.RATES, *([beyond] if beyond else [])]
    assert cells.searched_rates(found(first), 16) == ({} if beyond else {"wd1": chosen})
    if beyond:
        assert cells.searched_rates(found([*first, (beyond, 0.7)]), 16) == {"wd1": chosen}
        assert cells.searched_rates(found([*first, (beyond, 0.8)]), 16) == {"wd1": beyond}
    assert cells.searched_rates(found(first), 17) == {}


def test_the_tables_say_which_cells_are_done(cells, tmp_path, capsys):
    def line(method, seed, step, accuracy):
        cost = {"rollouts": 128 * step, "sampling": 1024 * step, "new": 1536 * step, "old": 0, "reference": 0}
        cell = {"task": "sums", "method": method, "seed": seed, "rate": 1e-4, "search": False, "step": step}
        return json.dumps(cell | cost | {"accuracy": accuracy, "rows": 512, "seconds": 2.0 * step})

    runs = [("wd1", 0, 0.75), ("wd1", 1, 0.8125), ("spg", 0, 0.5)]
    lines = [line(m, s, step, a) for m, s, end in runs for step, a in ((0, 0.5), (32, end))]
    searched = [line("wd1", 100, 16, 0.625).replace('"search": false', '"search": true')]
    (tmp_path / "cells.jsonl").write_text("\n".join([*lines, line("espo", 0, 0, 0.5), *searched]))
    figure = tmp_path / "figure.png"
    assert load_example("table", "methods").main([str(tmp_path / "cells.jsonl"), "--figure", str(figure)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[4] == ("| wd1 | 0.0001 | 2 of 3 | 0.500 | 0.781 | 0.743 to 0.815 | 0.750, 0.812 | 12, 0, 0 | 64 |")
    assert rows[5].startswith("| spg | 0.0001 | 1 of 3 | 0.500 | 0.500 |")
    [absent] = [row for row in rows if row.startswith("Not done: ")]
    assert set(absent[len("Not done: ") : -1].split(", ")) == {*cells.methods()} - {"wd1", "spg"}
    assert any(row.startswith("| + truncation | 0 of 3 |") and row.endswith("| 84.7 |") for row in rows)
    assert rows[-4:-1] == [
        "| method | 1e-05 | 3e-05 | 0.0001 | 0.0003 | 0.001 |",
        "| --- | --- | --- | --- | --- | --- |",
        "| wd1 |  |  | **0.625** |  |  |",
    ]
    assert figure.stat().st_size > 1000


@pytest.mark.parametrize("task", ["countdown", "sudoku"])
def test_the_answers_of_a_further_task_are_right_and_fit(cells, task):
    tasks = load_example("tasks", "methods")
    tokenizer = tasks.make_tokenizer(tasks.CHARACTERS)
    lengths = dict(override.split("=") for override in cells.TASKS[task])
    for split in ("train", "validation"):
        for problem in islice(tasks.PROBLEMS[task](split, 0), 200):
            extra = dict(problem.row["extra_info"])
            truth = problem.row["reward_model"]["ground_truth"]
            assert score(extra.pop("task"), problem.answer, truth, **extra)["acc"] == 1.0
            text = tokenizer.apply_chat_template(problem.row["prompt"], tokenize=False, add_generation_prompt=True)
            prompt, answer = (tokenizer.encode(part, add_special_tokens=False) for part in (text, problem.answer))
            assert tokenizer.unk_token_id not in [*prompt, *answer]
            assert len(prompt) <= int(lengths["data.max_prompt_length"])
            assert len(answer) < int(lengths["data.max_response_length"])


def test_a_signed_sum_uses_each_number_once():
    tasks = load_example("tasks", "methods")
    assert tasks.signed_sum([4, 10, 7], 13) == "10+7-4"
    assert tasks.signed_sum([4, 10, 7], 21) == "4+10+7"
    assert tasks.signed_sum([4, 10, 7], 280) is None


@pytest.mark.parametrize(("text", "named"), [("{}", "line 1"), ("nothing", "nothing")])
def test_a_foreign_line_is_one_error(cells, tmp_path, capsys, text, named):
    (tmp_path / "cells.jsonl").write_text(text)
    assert load_example("table", "methods").main([str(tmp_path / "cells.jsonl")]) == 2
    error = capsys.readouterr().err
    assert named in error and error.count("\n") == 1
