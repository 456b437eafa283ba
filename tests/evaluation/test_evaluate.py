"""The evaluation command on tiny models: what it writes, how it resumes, what it refuses."""

import json
import re
import subprocess
import zlib
from pathlib import Path

import forked_python
import pytest

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluate import main
from maskgrpo_plugin.evaluation.problems import read_problems
from maskgrpo_plugin.rewards.text.scorers.arithmetic import score_arithmetic

VARIED = Path(__file__).parents[1] / "e2e" / "varied_reward.py"
SHORT = ["--lengths", "8", "--block-length", "4", "--batch-size", "8"]


def command(folder, out, *options, model="model"):
    data = ["--data", str(folder / "data" / "validation.parquet")]
    return ["--model", str(folder / model), *data, "--output-dir", str(out), *options]


def evaluate(folder, out, *options, model="model"):
    """Run the command; returns the generations by prompt, length and sample, and the summaries."""
    assert main(command(folder, out, *options, model=model)) == 0
    return read(out), json.loads((out / "summary.json").read_text())


def read(out):
    rows = [json.loads(line) for line in (out / "generations.jsonl").read_text().splitlines()]
    found = {(row["id"], row["length"], row["sample"]): row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture(scope="module")
def sampled(tiny_run, tmp_path_factory):
    """An evaluation with two lengths and three samples a prompt, scored by a function of the text."""
    out = tmp_path_factory.mktemp("sampled")
    options = ["--lengths", "8", "16", "--block-length", "4", "--temperature", "1", "--samples", "3", "--token-ids"]
    custom = f"reward.custom_reward_function.path={VARIED}"
    return evaluate(tiny_run, out, *options, "--batch-size", "8", "--set", custom)


def test_every_generation_is_written_scored_and_summed_up(sampled, tiny_run):
    rows, summaries = sampled
    expected = {(f"arithmetic/{n}", length, k) for n in range(16) for length in (8, 16) for k in range(3)}
    assert set(rows) == expected
    for row in rows.values():
        assert len(row["token_ids"]) == row["length"]
        assert row["score"] == zlib.crc32(row["text"].encode()) % 1000 / 1000 and row["failure"] is None
        assert 0 <= row["effective_tokens"] <= row["length"] and 1 <= row["model_calls"] <= row["length"] // 2
    assert len({row["text"] for row in rows.values()}) > 16
    for length, summary in zip((8, 16), summaries, strict=True):
        own = [row for row in rows.values() if row["length"] == length]
        assert (summary["length"], summary["prompts"], summary["generations"]) == (length, 16, 48)
        assert summary["score"] == pytest.approx(sum(row["score"] for row in own) / 48)
        calls = sum(row["model_calls"] for row in own)
        assert summary["calls_per_token"] == pytest.approx(calls / sum(row["effective_tokens"] for row in own))
        assert summary["pass@1"] == summary["pass@3"] == summary["accuracy"] == 0.0


def test_texts_end_before_the_first_stop_token(sampled, tiny_run):
    from transformers import AutoTokenizer

    from maskgrpo_plugin.models.special_tokens import stop_token_ids

    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    stops = stop_token_ids(tokenizer)
    for row in sampled[0].values():
        head, tail = row["token_ids"][: row["effective_tokens"]], row["token_ids"][row["effective_tokens"] :]
        assert not set(head) & set(stops) and (not tail or tail[0] in stops)
        assert row["text"] == tokenizer.decode(head, skip_special_tokens=True)


def test_a_stopped_evaluation_ends_as_one_that_was_not_stopped(tiny_run, tmp_path):
    options = [*SHORT, "--temperature", "1", "--samples", "2"]
    whole, _ = evaluate(tiny_run, tmp_path / "whole", *options)
    out = tmp_path / "stopped"
    evaluate(tiny_run, out, *options, "--limit", "5")
    file = out / "generations.jsonl"
    kept = file.read_text().splitlines(keepends=True)[:-1]
    file.write_bytes(file.read_bytes()[:-7])  # torn in the middle of the last line
    rows, _ = evaluate(tiny_run, out, *options)
    assert rows == whole
    assert file.read_text().startswith("".join(kept))
    before = file.read_text()
    evaluate(tiny_run, out, *options)
    assert file.read_text() == before


def test_other_settings_are_refused_by_name_and_another_length_is_not(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    evaluate(tiny_run, out, *SHORT, "--limit", "2")
    assert main(command(tiny_run, out, *SHORT, "--limit", "2", "--steps", "8")) == 1
    message = capsys.readouterr().err
    assert "lengths.8.steps=8" in message and "made with 4" in message and "--overwrite" in message
    assert main(command(tiny_run, out, *SHORT, "--limit", "2", "--seed", "3")) == 1
    assert "seed=3" in capsys.readouterr().err
    longer = ["--lengths", "16", "--block-length", "4", "--batch-size", "8"]
    rows, summaries = evaluate(tiny_run, out, *longer, "--limit", "2")
    assert len(rows) == 4 and [summary["length"] for summary in summaries] == [16]
    rows, _ = evaluate(tiny_run, out, *SHORT, "--limit", "2", "--steps", "8", "--overwrite")
    assert set(rows) == {("arithmetic/0", 8, 0), ("arithmetic/1", 8, 0)}


def test_an_unreadable_line_within_is_an_error(tiny_run, tmp_path):
    out = tmp_path / "out"
    evaluate(tiny_run, out, *SHORT, "--limit", "3")
    lines = (out / "generations.jsonl").read_text().splitlines()
    (out / "generations.jsonl").write_text("\n".join([lines[0], "{broken", lines[2]]) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        main(command(tiny_run, out, *SHORT))


def test_an_autoregressive_checkpoint_goes_through_its_own_server(tiny_run, tmp_path, capsys):
    rows, summaries = evaluate(tiny_run, tmp_path / "out", *SHORT, "--temperature", "1", model="model_ar")
    assert len(rows) == 16
    for row in rows.values():
        assert row["model_calls"] in (row["effective_tokens"], row["effective_tokens"] + 1)
        ground_truth = sum(map(int, row["prompt"].rstrip("=").split("+")))
        assert row["acc"] == score_arithmetic(row["text"], ground_truth)["acc"]
    line = capsys.readouterr().out.splitlines()[1].split()
    assert line[:4] == ["arithmetic", "8", "16", "16"]
    assert float(line[4]) == pytest.approx(summaries[0]["accuracy"], abs=5e-4)


def test_a_task_is_prepared_by_its_name(tiny_run, tmp_path):
    model = ["--model", str(tiny_run / "model"), "--tasks", "arithmetic", "--limit", "2"]
    assert main([*model, "--output-dir", str(tmp_path), "--lengths", "8", "--batch-size", "4"]) == 0
    rows = read(tmp_path)
    assert set(rows) == {("arithmetic/0", 8, 0), ("arithmetic/1", 8, 0)}
    assert (tmp_path / "data" / "arithmetic" / "validation.parquet").is_file()


def test_a_scorer_that_raises_or_hangs_is_counted_and_nothing_is_lost(tiny_run, tmp_path):
    faulty = tmp_path / "faulty.py"
    faulty.write_text(
        "import time\n"
        "def compute_score(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    if extra_info['index'] % 4 == 0:\n"
        "        raise OSError('no disk')\n"
        "    if extra_info['index'] % 4 == 1:\n"
        "        time.sleep(3600)\n"
        "    return {'score': 0.5, 'acc': 1.0}\n"
    )
    overrides = ["--set", f"reward.custom_reward_function.path={faulty}", "reward.timeout_s=0.3"]
    rows, (summary,) = evaluate(tiny_run, tmp_path / "out", *SHORT, *overrides)
    kinds = [rows[f"arithmetic/{n}", 8, 0]["failure"] for n in range(4)]
    assert kinds == ["error", "timed_out", None, None]
    assert len(rows) == 16 and summary["failures"] == 8 and summary["accuracy"] == 0.5


def test_options_of_the_sampler_are_set_by_the_keys_of_a_run_or_by_flags_of_their_names(tiny_run, tmp_path):
    short = ["--lengths", "8", "--batch-size", "8", "--limit", "4", "--temperature", "1"]
    keys = ["--set", "rollout.sampler.options.block_length=4", "rollout.sampler.options.ordering=margin"]
    flags = ["--block-length", "4", "--ordering", "margin", "--low-threshold", "0.3"]
    by_keys, _ = evaluate(tiny_run, tmp_path / "keys", *short, *keys, "rollout.sampler.options.low_threshold=0.3")
    by_flags, _ = evaluate(tiny_run, tmp_path / "flags", *short, *flags)
    assert by_keys == by_flags
    recorded = json.loads((tmp_path / "keys" / "settings.json").read_text())["lengths"]["8"]
    assert recorded["steps"] == 4 and recorded["block_length"] == 4 and recorded["ordering"] == "margin"
    assert recorded == json.loads((tmp_path / "flags" / "settings.json").read_text())["lengths"]["8"]
    other, _ = evaluate(tiny_run, tmp_path / "other", *short, "--set", "rollout.sampler.name=emerge")
    assert other != by_keys


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lengths", "8", "--set", "rollout.sampler.options.stepz=4"], r"--stepz=4.*it has steps"),
        (["--lengths", "8", "--set", "rollout.sampler.steps=4"], r"--set='rollout.sampler.steps=4'"),
        (["--lengths", "8", "--sampler", "greedy"], r"--sampler='greedy'.*semi_autoregressive, emerge, maskgit"),
        (["--lengths", "8", "--sampler", "emerge", "--block-length", "4"], r"--block-length=4.*no such option"),
        (["--lengths", "8", "--threshold", "1.5"], r"--threshold=1.5"),
        (["--lengths", "10", "--block-length", "4"], r"--block-length=4 is not usable.*divide.*10"),
        (["--lengths", "8", "--steps", "1", "--block-length", "4"], "--steps=1"),
        (["--lengths", "8", "16", "32", "--steps", "4", "8"], r"--steps=\[4, 8\]"),
        (["--lengths", "8", "--samples", "2"], "--temperature=0.0"),
        (["--lengths", "8", "--samples", "2", "--temperature", "1", "--k", "3"], "--k=3"),
        (["--lengths", "4096"], "--lengths=4096 is not usable"),
        (["--lengths", "8", "--scorers", "clip"], r"--scorers"),
        (["--lengths", "8", "--layout", "geneval"], r"--layout"),
        (["--lengths", "8", "--set", "rollout.n=3"], r"--set='rollout.n=3'"),
        (["--lengths", "8", "--set", "reward.sandbox.isolate=true"], r"reward\.sandbox\.isolate"),
        (["--lengths", "8", "--model", "/nowhere/model"], r"--model='/nowhere/model'"),
        (["--lengths", "8", "--data", "/nowhere/data.parquet"], r"--data='/nowhere/data.parquet'"),
    ],
)
def test_options_that_cannot_work_are_named(tiny_run, tmp_path, capsys, options, message):
    assert main(command(tiny_run, tmp_path / "out", *options)) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert re.search(message, error)
    assert not (tmp_path / "out" / "generations.jsonl").exists()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("prompt", None, "its prompt is null"),
        ("reward_model", None, "its reward_model is None"),
        ("data_source", None, "its data_source is null"),
    ],
)
def test_a_row_that_cannot_be_asked_or_scored_is_named(tiny_run, tmp_path, column, value, message):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(tiny_run / "data" / "validation.parquet")
    rows = table.to_pylist()
    rows[3][column] = value
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), file)
    with pytest.raises(OptionError, match=rf"rows\.parquet, row 3.*{message}"):
        read_problems([file], [], limit=None)


def test_the_checks_of_rows_are_imported_without_verl_whose_import_needs_them():
    program = "import sys, maskgrpo_plugin.data.reward_checks; sys.exit('verl' in sys.modules)"
    assert subprocess.run([*forked_python.command(), "-c", program]).returncode == 0
