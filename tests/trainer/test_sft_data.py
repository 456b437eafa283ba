"""The sources of a supervised run: which files are read, in which order, and how many of their rows."""

import json

import pytest
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoTokenizer

from maskgrpo_plugin.data.rows import write_parquet
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.trainer.sft_data import read_sources, source_files


def rows(*sums):
    return [
        {"messages": [{"role": "user", "content": f"{n}+0="}, {"role": "assistant", "content": str(n)}]} for n in sums
    ]


@pytest.fixture
def folder(tmp_path):
    write_parquet(rows(3, 4), tmp_path / "shards" / "b.parquet")
    write_parquet(rows(1, 2), tmp_path / "shards" / "a.parquet")
    (tmp_path / "shards" / "manifest.json").write_text("{}")
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(5, 6, 7)))
    (tmp_path / "list.json").write_text(json.dumps(rows(8)))
    return tmp_path


def sources(tiny_run, **data):
    defaults = {"train_max_samples": -1, "val_max_samples": -1, "messages_key": "messages", "assistant_turns": "all"}
    defaults |= {"apply_chat_template_kwargs": {}, "max_length": 32, "truncation": "error", "bad_rows": "error"}
    defaults |= {"val_files": None, "mixture": {}}
    model = {"model_type": "masked_diffusion", "path": "x"}
    config = OmegaConf.create({"data": defaults | data, "model": model, "preference": None})
    model = tiny_run / "model"
    found = read_sources(config, AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model))
    tokenizer = AutoTokenizer.from_pretrained(model)
    return {
        source.name: [tokenizer.decode(example.answer_ids, skip_special_tokens=True) for example in source.train]
        for source in found
    }


def test_files_are_read_in_their_order_and_a_folder_by_the_names_of_its_shards(tiny_run, folder):
    files = [str(folder / "lines.jsonl"), str(folder / "shards"), str(folder / "list.json")]
    assert sources(tiny_run, train_files=files) == {"all": ["5", "6", "7", "1", "2", "3", "4", "8"]}
    assert sources(tiny_run, train_files=files, train_max_samples=1) == {"all": ["5", "1", "3", "8"]}


def test_a_mixture_has_a_source_per_name(tiny_run, folder):
    mixture = {"a": {"train_files": str(folder / "list.json"), "share": 2, "weight": 0.5}}
    mixture["b"] = {"train_files": str(folder / "lines.jsonl")}
    assert sources(tiny_run, mixture=mixture, train_files=None) == {"a": ["8"], "b": ["5", "6", "7"]}
    found = source_files(OmegaConf.create({"data": {"mixture": mixture}}))
    assert [(each.name, each.share, each.weight) for each in found] == [("a", 2.0, 0.5), ("b", 1.0, 1.0)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("nowhere.parquet", None, "does not exist"),
        ("a.csv", "x", "allowed: files that end in"),
        ("a.parquet", "no parquet", "cannot be read"),
        ("a.jsonl", "{", "cannot be read"),
        ("empty.jsonl", "", "no row can be used"),
        ("list.jsonl", '{"messages": []}\n[1]', "row 1 is no object"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tiny_run, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(OptionError, match=said) as caught:
        sources(tiny_run, train_files=str(tmp_path / name))
    assert caught.value.key == "data.train_files" and name in str(caught.value.value)
