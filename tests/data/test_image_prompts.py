"""Text-to-image prompts from JSON Lines, text and webdataset archives."""

import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest

from maskgrpo_plugin.data.image_prompts import main


def read(folder, split):
    return pq.read_table(folder / f"{split}.parquet").to_pylist()


def test_geneval_keeps_its_metadata(tmp_path, capsys):
    records = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": f"a photo of {n} benches"}
        for n in range(10)
    ]
    source = tmp_path / "geneval.jsonl"
    source.write_text("\n".join(map(json.dumps, records)) + "\n{broken\n")
    out = tmp_path / "out"
    assert main(["--train", str(source), "--validation-rows", "3", "--output-dir", str(out)]) == 0
    assert "7 rows" in capsys.readouterr().out
    rows = read(out, "train") + read(out, "validation")
    assert sorted(row["prompt"][0]["content"] for row in rows) == sorted(r["prompt"] for r in records)
    info = read(out, "validation")[1]["extra_info"]
    assert info["modality"] == "t2i" and info["index"] == 1 and info["split"] == "validation"
    assert json.loads(info["metadata"])["include"][0]["class"] == "bench"
    assert main(["--train", str(source), "--strict", "--output-dir", str(out)]) == 1
    assert "geneval.jsonl:11" in capsys.readouterr().err


def test_plain_text_and_an_archive_of_captions(tmp_path):
    text = tmp_path / "prompts.txt"
    text.write_text("a red cube\n\na blue ball\n")
    archive = tmp_path / "captions.tar"
    with tarfile.open(archive, "w") as tar:
        members = {"0.txt": b"a dog", "0.jpg": b"pixels", "1.json": b'{"caption": "a cat", "url": "u"}'}
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    out = tmp_path / "out"
    assert main(["--train", str(archive), "--validation", str(text), "--output-dir", str(out)]) == 0
    assert [row["prompt"][0]["content"] for row in read(out, "train")] == ["a dog", "a cat"]
    assert json.loads(read(out, "train")[1]["extra_info"]["metadata"]) == {"url": "u"}
    assert [row["extra_info"]["prompt"] for row in read(out, "validation")] == ["a red cube", "a blue ball"]


@pytest.mark.parametrize("content", ["", '{"other": 1}\n'])
def test_a_file_without_prompts_is_an_error(tmp_path, content, capsys):
    source = tmp_path / "p.jsonl"
    source.write_text(content)
    assert main(["--train", str(source), "--output-dir", str(tmp_path)]) == 1
    assert "no usable prompt" in capsys.readouterr().err
