"""The page of a denoising: its data rebuilds the completion, nothing in it breaks out, nothing is loaded."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from page_elements import Elements
from PIL import Image

from maskgrpo_plugin.generate import main
from maskgrpo_plugin.generation.trace import fill_hidden, page

HOSTILE = "</script><script>alert(1)</script><!-- <b>&amp; \u2028\u2029 ]]> \\u003c \x00\x1b @DATA@ @STYLE@ é 漢"


def data_of(text):
    (data,) = [text for tag, attributes, text in Elements(text).found if attributes.get("id") == "data"]
    return json.loads(data)


def traced(path, *options):
    assert main([*map(str, options), "--trace", str(path)]) == 0
    return data_of(path.read_text(encoding="utf-8"))


def after(frames, count):
    """By place, what the first frames wrote."""
    return {change[0]: change[1:] for frame in frames[:count] for change in frame["set"]}


def test_nothing_of_the_data_breaks_out():
    empty = Elements(page({}))
    data = {HOSTILE: [HOSTILE], "completions": [{"prompt": HOSTILE}]}
    held = Elements(page(data))
    assert [element[:2] for element in held.found] == [element[:2] for element in empty.found]
    assert sum(element != other for element, other in zip(held.found, empty.found, strict=True)) == 1
    assert data_of(page(data)) == data
    assert all(32 <= ord(character) < 127 for character in page(data).split('id="data">')[1].split("</script>")[0])


def test_nothing_is_loaded():
    text = page({"model": "model"})
    (policy,) = [element[1]["content"] for element in Elements(text).found if "http-equiv" in element[1]]
    assert policy.startswith("default-src 'none';") and "img-src data:" in policy
    assert not re.search(r"https?:|//\w+\.|@import|\bfetch\b|XMLHttpRequest|url\(", text)
    for _, attributes, _ in Elements(text).found:
        assert not {"src", "href"} & set(attributes)


def test_the_frames_of_a_text_rebuild_it(tiny_run, tmp_path, capsys):
    from transformers import AutoTokenizer

    options = ["--length", "16", "--block-length", "8", "--temperature", "1", "--samples", "3", "--batch-size", "2"]
    model = ["--model", tiny_run / "model", "--prompt", "12+34=", *options, "--json"]
    data = traced(tmp_path / "page.html", *model, "--early-stop", "false", "--steps", "8")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    stops = AutoTokenizer.from_pretrained(tiny_run / "model").all_special_tokens
    assert data["settings"]["steps"] == 8 and data["settings"]["length"] == 16
    assert len(data["completions"]) == len(rows) == 3
    for entry, row in zip(data["completions"], rows, strict=True):
        assert entry["messages"] == [{"role": "user", "content": "12+34="}] and entry["seed"] == str(row["seed"])
        assert [frame["step"] for frame in entry["frames"]] == list(range(8))
        assert all(len(frame["set"]) == 2 for frame in entry["frames"])
        marks = after(entry["frames"], 8)
        assert set(marks) == set(entry["written"]) == set(range(16))
        assert all(0 < probability <= 1 and 0 <= step < 8 for probability, step in marks.values())
        assert set(after(entry["frames"], 4)) == set(range(8))  # the first block comes first
        text = "".join(piece for piece in entry["pieces"][: entry["end"]] if piece not in stops)
        assert text == row["text"] and entry["end"] == row["tokens"]
        assert all((entry["pieces"][place] in stops) == (place in entry["special"]) for place in range(16))


def decoded(uri):
    head, body = uri.split(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(body))) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("most", "kept"), [(None, 6), (4, 4), (1, 1)])
def test_the_frames_of_an_image_end_with_it(tiny_digits, tmp_path, capsys, most, kept):
    model = ["--model", tiny_digits / "model", "--image-tokenizer", tiny_digits / "vq", "--to", "image"]
    asked = ["--prompt", "a handwritten two", "--sampler", "maskgit", "--steps", 6]
    asked += ["--temperature", 1, "--output-dir", tmp_path, "--json"]
    limit = [] if most is None else ["--trace-steps", most]
    data = traced(tmp_path / "page.html", *model, *asked, *limit)
    (row,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (entry,) = data["completions"]
    assert (entry["steps"], len(entry["frames"]), entry["grid"], entry["size"]) == (6, kept, [4, 4], [8, 8])
    marks = after(entry["frames"], kept)
    assert set(marks) == set(range(16)) and {step for _, step in marks.values()} == set(range(6))
    for count, frame in enumerate(entry["frames"], start=1):
        assert max(step for _, step in after(entry["frames"], count).values()) == frame["step"]
    with Image.open(row["image"]) as image:
        assert np.array_equal(decoded(entry["frames"][-1]["png"]), np.asarray(image))
    assert len({decoded(frame["png"]).tobytes() for frame in entry["frames"]}) == kept


def test_an_answer_has_its_picture(tiny_digits, tmp_path):
    values = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "one.png")
    model = ["--model", tiny_digits / "model", "--image-tokenizer", tiny_digits / "vq", "--length", 4]
    data = traced(tmp_path / "page.html", *model, "--prompt", "a", "--image", tmp_path / "one.png")
    (entry,) = data["completions"]
    assert np.array_equal(decoded(entry["picture"]), values) and entry["kind"] == "text"


def test_hidden_tokens_take_the_nearest_revealed_one():
    tokens, hidden = torch.tensor([7, 0, 0, 8]), torch.tensor([False, True, True, False])
    assert fill_hidden(tokens, hidden, (1, 4)).tolist() == [7, 7, 8, 8]
    grid = torch.zeros(5, 5, dtype=torch.long)
    grid[0, 0], grid[4, 3], grid[1, 4] = 5, 6, 7
    filled = fill_hidden(grid.flatten(), grid.flatten() == 0, (5, 5)).view(5, 5)
    known = {(0, 0): 5, (4, 3): 6, (1, 4): 7}
    for row in range(5):
        for column in range(5):
            distances = [((row - r) ** 2 + (column - c) ** 2, n) for n, (r, c) in enumerate(sorted(known))]
            assert filled[row, column] == known[sorted(known)[min(distances)[1]]]
