"""The evaluation command on questions about images: they are answered as texts and scored by their task."""

import json

import pyarrow.parquet as pq

from maskgrpo_plugin.evaluate import main
from maskgrpo_plugin.rewards.text.scorers.exact_answer import score_short_answer


def test_questions_about_images_are_answered_and_scored(tiny_digits, tmp_path):
    data = tiny_digits / "data_mmu" / "validation.parquet"
    how = ["--lengths", "2", "--steps", "2", "--temperature", "1", "--samples", "2", "--token-ids"]
    command = ["--model", str(tiny_digits / "model"), "--data", str(data), "--output-dir", str(tmp_path), *how]
    assert main(command) == 0
    asked = pq.read_table(data).to_pylist()
    rows = [json.loads(line) for line in (tmp_path / "generations.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(asked)
    for row in rows:
        truth = asked[int(row["id"].rpartition("/")[2])]["reward_model"]["ground_truth"]
        assert row["prompt"] == "which digit is this" and len(row["token_ids"]) == 2
        assert row["acc"] == score_short_answer(row["text"], truth)["acc"] and row["failure"] is None
    (summary,) = json.loads((tmp_path / "summary.json").read_text())
    assert summary["accuracy"] == sum(row["acc"] for row in rows) / len(rows)
