"""Rows and files of data that cannot work: what is done to good ones, and what the message must say."""

import json

THIRD = 3


def good_rows(count=32):
    """Rows of the quickstart's kind."""
    return [
        {
            "data_source": "arithmetic",
            "prompt": [{"role": "user", "content": f"{n}+1="}],
            "reward_model": {"style": "rule", "ground_truth": str(n + 1)},
            "extra_info": {"split": "train", "index": n, "task": "arithmetic"},
        }
        for n in range(count)
    ]


def at(path, value, *, rows=(THIRD,)):
    """A function that sets what `path` names in some rows; `rows` None: in all."""

    def change(data):
        for n, row in enumerate(data):
            if rows is None or n in rows:
                place = row
                for part in path[:-1]:
                    place = place[part]
                place[path[-1]] = value
        return data

    return change


def without(column, *, inside=None, rows=None):
    """A function that takes a column, or an entry of one, away."""

    def change(data):
        for n, row in enumerate(data):
            if rows is None or n in rows:
                (row if inside is None else row[inside]).pop(column)
        return data

    return change


ROWS = {
    "no rows": (lambda data: [], "no rows"),
    "too few rows": (lambda data: data[:4], "data.train_batch_size"),
    "no column prompt": (without("prompt"), "no such column"),
    "no column data_source": (without("data_source"), "no column data_source"),
    "no column reward_model": (without("reward_model"), "no column reward_model"),
    "null prompt": (at(["prompt"], None), "row 3"),
    "empty prompt": (at(["prompt"], []), "row 3"),
    "text for a prompt": (at(["prompt"], "3+1=", rows=None), "row 0"),
    "one text for a prompt": (at(["prompt"], "3+1="), "row 3"),
    "number for a prompt": (at(["prompt"], 3), "row 3"),
    "message without content": (at(["prompt"], [{"role": "user"}]), "row 3"),
    "message without role": (at(["prompt"], [{"content": "3+1="}]), "row 3"),
    "null content": (at(["prompt"], [{"role": "user", "content": None}]), "row 3"),
    "number for content": (at(["prompt"], [{"role": "user", "content": 3}]), "row 3"),
    "null role": (at(["prompt"], [{"role": None, "content": "3+1="}]), "row 3"),
    "messages that are texts": (at(["prompt"], ["3+1="]), "row 3"),
    "empty content": (at(["prompt"], [{"role": "user", "content": ""}]), "row 3"),
    "null data_source": (at(["data_source"], None), "row 3"),
    "null data_source everywhere": (at(["data_source"], None, rows=None), "row 0"),
    "unknown data_source": (
        lambda data: at(["data_source"], "mine")(without("task", inside="extra_info", rows=(THIRD,))(data)),
        "row 3",
    ),
    "unknown data_source everywhere": (
        lambda data: at(["data_source"], "mine", rows=None)(without("task", inside="extra_info")(data)),
        "row 0",
    ),
    "unknown task": (at(["extra_info", "task"], "arithmetics"), "row 3"),
    "unknown task everywhere": (at(["extra_info", "task"], "poetry", rows=None), "row 0"),
    "number for a task": (at(["extra_info", "task"], 7), "row 3"),
    "null reward_model": (at(["reward_model"], None), "row 3"),
    "text for reward_model": (at(["reward_model"], "4"), "row 3"),
    "no ground_truth": (without("ground_truth", inside="reward_model", rows=(THIRD,)), "row 3"),
    "null ground_truth": (at(["reward_model", "ground_truth"], None), "row 3"),
    "null ground_truth everywhere": (at(["reward_model", "ground_truth"], None, rows=None), "row 0"),
    "unreadable ground_truth": (at(["reward_model", "ground_truth"], "four"), "row 3"),
    "empty ground_truth": (at(["reward_model", "ground_truth"], ""), "row 3"),
    "ground_truth of another task": (at(["extra_info", "task"], "countdown"), "row 3"),
    "sudoku without a puzzle": (at(["extra_info", "task"], "sudoku"), "row 3"),
    "text for extra_info": (at(["extra_info"], "3"), "row 3"),
    "half of the indices null": (at(["extra_info", "index"], None, rows=range(0, 32, 2)), "row 0"),
    "one index null": (at(["extra_info", "index"], None), "row 3"),
    "all indices null": (at(["extra_info", "index"], None, rows=None), "row 0"),
    "text for an index": (at(["extra_info", "index"], "third"), "row 3"),
    "half an index": (at(["extra_info", "index"], 3.5), "row 3"),
    "list for an index": (at(["extra_info", "index"], [3]), "row 3"),
    "extra_info null in one row": (at(["extra_info"], None), "row 3"),
    "unknown modality": (at(["extra_info", "modality"], "video"), "row 3"),
    "image from a text model": (at(["extra_info", "modality"], "t2i"), "sampler.name"),
    "extra_info null beside a modality": (
        lambda data: at(["extra_info"], None)(at(["extra_info", "modality"], "text", rows=None)(data)),
        "row 3",
    ),
    "a prompt that is too long": (at(["prompt"], [{"role": "user", "content": "1+" * 40}]), "row 3"),
    "all prompts too long": (at(["prompt"], [{"role": "user", "content": "1+" * 40}], rows=None), "row 0"),
    "a role that the template refuses": (at(["prompt"], [{"role": "user", "content": [{"type": "x"}]}]), "row 3"),
}
FILES = {
    "torn.parquet": b"PAR1torn",
    "empty.parquet": b"",
    "torn.jsonl": b'{"prompt": [',
    "empty.jsonl": b"",
    "numbers.jsonl": b"1\n2\n",
    "bytes.json": b"\xff\xfe\x00",
    "rows.csv": b"prompt,answer\n1+1=,2\n",
    "rows.txt": b"1+1=\n",
}


def write_jsonl(rows, path):
    """One row per line, of whatever types they are."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
