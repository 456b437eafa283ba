"""Captioned images as shards of codes: what is read, what the codes are, interruption, and bad input."""

import io
import json
import re
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pictures import picture, png
from PIL import Image

from maskgrpo_plugin.data import code_shards
from maskgrpo_plugin.data.captions import main
from maskgrpo_plugin.data.image_encoder import ImageEncoder
from maskgrpo_plugin.models.image_tokenizers import load_image_tokenizer

COLUMNS = ["caption", "image_codes", "height", "width", "source"]


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def samples(count, first=0):
    """Members of an archive of pictures 0, 1, … with captions."""
    members = {}
    for n in range(first, first + count):
        members |= {f"{n:03d}.png": png(picture(n)), f"{n:03d}.txt": f"picture {n}\n".encode()}
    return members


@pytest.fixture(scope="module")
def vq(tiny_digits):
    return tiny_digits / "vq"


@pytest.fixture(scope="module")
def expected(vq):
    """The codes that the image tokenizer gives pictures of 8 × 8 pixels, one by one."""
    tokenizer = load_image_tokenizer(str(vq))

    def codes(pixels):
        values = torch.tensor(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
        return tokenizer.get_code(values)[0].tolist()

    return codes


@pytest.fixture
def run(vq, tmp_path):
    """The command with the tiny image tokenizer at 8 pixels, and small shards, into `out`."""

    def command(*arguments, out="out"):
        common = ["--image-tokenizer", vq, "--resolution", 8, "--batch-size", 3, "--rows-per-shard", 4, "--workers", 2]
        return main([str(part) for part in (*common, "--device", "cpu", "--output-dir", tmp_path / out, *arguments)])

    return command


def rows_of(folder):
    return [row for path in sorted(folder.glob("codes-*.parquet")) for row in pq.read_table(path).to_pylist()]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---- what is read, and what comes out


def test_an_archive_gives_captions_and_the_tokenizers_codes_in_shards(tmp_path, run, expected, capsys):
    path = write_tar(tmp_path / "a.tar", samples(10))
    assert run("--input", path) == 0
    assert "3 shards" in capsys.readouterr().out
    files = sorted((tmp_path / "out").glob("codes-*.parquet"))
    assert [pq.read_metadata(file).num_rows for file in files] == [4, 4, 2]
    schema = pq.read_schema(files[0])
    assert schema.names == COLUMNS and schema.field("image_codes").type == pa.list_(pa.int32())
    for n, row in enumerate(rows_of(tmp_path / "out")):
        assert row["caption"] == f"picture {n}" and row["source"] == f"{path}:{n:03d}.png"
        assert (row["height"], row["width"]) == (4, 4) and row["image_codes"] == expected(picture(n))
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    counted = {"complete": True, "rows": 10, "shards": 3, "skipped": {}, "first_skipped": []}
    described = {"resolution": 8, "grid": [4, 4], "codebook_size": 64}
    assert {key: manifest[key] for key in (*counted, *described)} == {**counted, **described}
    assert set(manifest["settings"]["image_tokenizer"]) == {"config.json", "model.safetensors"}


def test_codes_in_16_bits_are_those_of_the_tokenizer_in_16_bits(tmp_path, run, vq):
    assert run("--input", write_tar(tmp_path / "a.tar", samples(3)), "--dtype", "bfloat16") == 0
    tokenizer = load_image_tokenizer(str(vq)).to(torch.bfloat16)
    pixels = torch.stack([torch.tensor(picture(n)).permute(2, 0, 1) for n in range(3)]) / 127.5 - 1
    codes = tokenizer.get_code(pixels.bfloat16()).tolist()
    assert [row["image_codes"] for row in rows_of(tmp_path / "out")] == codes


def test_images_of_other_sizes_are_resized_and_cut(tmp_path, run, expected):
    pixels = picture(0, 20, 31)
    assert run("--input", write_tar(tmp_path / "a.tar", {"a.png": png(pixels), "a.txt": b"a"})) == 0
    resized = Image.fromarray(pixels).resize((12, 8), Image.BICUBIC).crop((2, 0, 10, 8))
    assert rows_of(tmp_path / "out")[0]["image_codes"] == expected(np.asarray(resized))


def read_captions(tmp_path, run, *arguments):
    assert run("--overwrite", *arguments) == 0
    return [(row["caption"], row["image_codes"]) for row in rows_of(tmp_path / "out")]


def test_captions_of_an_archive_come_from_text_or_json(tmp_path, run, expected):
    members = {
        "x/a.png": png(picture(0)),
        "x/a.json": json.dumps({"caption": "from json", "other": "from other"}).encode(),
        "x/a.cls": b"3",
        "x/b.seg.png": b"not an image of this sample",
        "x/b.PNG": png(picture(1)),
        "x/b.txt": b"from text",
        "x/b.json": b'{"caption": "passed over", "other": "from other"}',
    }
    for name, mode in (("a.tar", "w"), ("a.tar.gz", "w:gz")):
        path = write_tar(tmp_path / name, members, mode)
        found = read_captions(tmp_path, run, "--input", path)
        assert found == [("from json", expected(picture(0))), ("from text", expected(picture(1)))]
    found = read_captions(tmp_path, run, "--input", path, "--caption-key", "other")
    assert [caption for caption, _ in found] == ["from other", "from other"]


def test_parquet_holds_images_as_bytes_or_as_hugging_face_writes_them(tmp_path, run, expected):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "2.png").write_bytes(png(picture(2)))
    pairs = [{"bytes": png(picture(1)), "path": "1.png"}, {"bytes": None, "path": "pictures/2.png"}]
    pq.write_table(pa.table({"image": pairs, "text": ["one", "two"]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"jpg": [png(picture(3))], "title": ["three"]}), tmp_path / "b.parquet")
    wanted = [("one", expected(picture(1))), ("two", expected(picture(2)))]
    assert read_captions(tmp_path, run, "--input", tmp_path / "a.parquet") == wanted
    keys = ("--caption-key", "title", "--image-key", "jpg")
    assert read_captions(tmp_path, run, "--input", tmp_path / "b.parquet", *keys) == [("three", expected(picture(3)))]


LISTS = {
    "captions.jsonl": '{"file_name": "0.png", "text": "zero"}\n{"file_name": "sub/1.png", "text": "one"}\n',
    "metadata.jsonl": '{"file_name": "./0.png", "caption": "zero"}\n{"file_name": "sub/1.png", "caption": "one"}\n',
    "captions.tsv": "0.png\tzero\r\nsub/1.png\tone\n",
    "with_header.tsv": "file_name\twidth\tcaption\n0.png\t8\tzero\nsub/1.png\t8\tone\n",
    "captions.json": '[{"image": "0.png", "prompt": "zero"}, {"image": "sub/1.png", "prompt": "one"}]',
}


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    (folder / "sub").mkdir(parents=True)
    for n, name in enumerate(("0.png", "sub/1.png")):
        (folder / name).write_bytes(png(picture(n)))
    return folder


@pytest.mark.parametrize("name", LISTS)
def test_a_folder_has_its_captions_in_a_list(tmp_path, run, expected, pictures, name):
    (pictures / name).write_text(LISTS[name])
    wanted = [("zero", expected(picture(0))), ("one", expected(picture(1)))]
    assert read_captions(tmp_path, run, "--input", pictures / name) == wanted
    if name in ("captions.jsonl", "metadata.jsonl", "captions.tsv"):
        assert read_captions(tmp_path, run, "--input", pictures) == wanted


def test_an_image_with_several_captions_is_encoded_once(tmp_path, run, pictures, monkeypatch):
    lines = [{"file_name": name, "text": f"{name} {n}"} for n in range(3) for name in ("0.png", "sub/1.png")]
    (pictures / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sizes, encode = [], ImageEncoder.__call__
    monkeypatch.setattr(
        ImageEncoder, "__call__", lambda self, images: sizes.append(len(images)) or encode(self, images)
    )
    assert run("--input", pictures, "--rows-per-shard", 6) == 0
    rows = rows_of(tmp_path / "out")
    assert sizes == [2] and [row["caption"] for row in rows] == [line["text"] for line in lines]
    assert rows[0]["image_codes"] == rows[2]["image_codes"] != rows[1]["image_codes"] == rows[5]["image_codes"]


def test_the_resolution_is_what_the_models_square_of_tokens_takes(tmp_path, tiny_digits, vq, capsys):
    path = write_tar(tmp_path / "a.tar", samples(1))
    common = ["--input", str(path), "--image-tokenizer", str(vq), "--device", "cpu"]
    assert main([*common, "--model", str(tiny_digits / "model"), "--output-dir", str(tmp_path / "a")]) == 0
    assert main([*common, "--output-dir", str(tmp_path / "b")]) == 0
    grids = [json.loads((tmp_path / name / "manifest.json").read_text())["grid"] for name in "ab"]
    assert grids == [[4, 4], [128, 128]]
    assert len(rows_of(tmp_path / "b")[0]["image_codes"]) == 128 * 128


# ---- interruption


class Interrupted(Exception):
    pass


def interrupt_after(batches, monkeypatch):
    """Let the encoder raise after so many batches."""
    encode, left = ImageEncoder.__call__, iter(range(batches))

    def limited(self, images):
        if next(left, None) is None:
            raise Interrupted
        return encode(self, images)

    monkeypatch.setattr(ImageEncoder, "__call__", limited)


def broken_samples():
    """13 samples of which some cannot be used, at the beginning, around the shards' edges, and at the end."""
    members = samples(13)
    for n in (0, 5, 6):
        members[f"{n:03d}.png"] = b"no image"
    members["012.txt"] = b" "
    return members


@pytest.mark.parametrize("batches", range(6))
def test_a_second_call_takes_up_after_the_last_whole_shard(tmp_path, run, monkeypatch, batches):
    inputs = [write_tar(tmp_path / "a.tar", broken_samples()), write_tar(tmp_path / "b.tar", samples(3, 20))]
    arguments = ("--input", *inputs, "--skip-bad")
    assert run(*arguments, out="whole") == 0
    with monkeypatch.context() as patch:
        interrupt_after(batches, patch)
        with pytest.raises(Interrupted):
            run(*arguments)
    left = contents(tmp_path / "out")
    assert not any(name.endswith(".tmp") for name in left)
    assert sorted(name for name in left if name.startswith("codes")) == [
        f"codes-{n:05d}.parquet" for n in range(batches // 2)
    ]
    assert json.loads(left["manifest.json"])["complete"] is False
    assert run(*arguments) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(rows_of(tmp_path / "out")) == 12
    skipped = json.loads((tmp_path / "out" / "manifest.json").read_text())["skipped"]
    assert skipped == {"empty caption": 1, "image that cannot be read": 3}


def test_a_complete_folder_is_left_as_it_is(tmp_path, run, monkeypatch):
    path = write_tar(tmp_path / "a.tar", samples(5))
    assert run("--input", path) == 0
    before = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()}
    interrupt_after(0, monkeypatch)
    assert run("--input", path) == 0
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "out").iterdir()} == before


def test_a_shard_that_cannot_be_written_leaves_nothing_half(tmp_path, run, monkeypatch):
    path = write_tar(tmp_path / "a.tar", samples(6))

    def full(table, file):
        file.write_bytes(b"PAR1")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(code_shards.pq, "write_table", full)
        assert run("--input", path) == 1
    assert set(contents(tmp_path / "out")) == {"manifest.json"}
    assert run("--input", path) == 0 and len(rows_of(tmp_path / "out")) == 6


def change_caption(folder):
    (folder / "captions.jsonl").write_text('{"file_name": "0.png", "text": "another"}\n')


def change_image(folder):
    (folder / "0.png").write_bytes(png(picture(7, 9, 9)))


def test_another_input_option_or_tokenizer_is_refused_by_name(tmp_path, run, pictures, vq, capsys):
    (pictures / "captions.jsonl").write_text('{"file_name": "0.png", "text": "zero", "other": "o"}\n')
    (pictures / "sub" / "1.png").unlink()
    assert run("--input", pictures) == 0
    for arguments, named in (
        (["--batch-size", 5], "batch_size=5 is not usable; its codes were made with 3"),
        (["--resolution", 16], "resolution=16 is not usable; its codes were made with 8"),
        (["--dtype", "bfloat16"], "dtype='bfloat16'"),
        (["--caption-key", "other"], "caption_key='other'"),
        (["--rows-per-shard", 5], "rows_per_shard=5"),
        (["--input", pictures, pictures], "inputs="),
    ):
        assert run("--input", pictures, *arguments) == 1
        assert named in capsys.readouterr().err
    state = contents(tmp_path / "out")
    other = load_image_tokenizer(str(vq)).requires_grad_(True)
    with torch.no_grad():
        other.encoder.conv_in.bias += 1
    other.save_pretrained(tmp_path / "other_vq")
    assert run("--input", pictures, "--image-tokenizer", tmp_path / "other_vq") == 1
    assert "image_tokenizer.model.safetensors" in capsys.readouterr().err
    for change in (change_caption, change_image):
        change(pictures)
        assert run("--input", pictures) == 1
        assert f"input.{pictures}" in capsys.readouterr().err
    assert contents(tmp_path / "out") == state
    assert run("--input", pictures, "--overwrite") == 0
    assert [row["caption"] for row in rows_of(tmp_path / "out")] == ["another"]


def test_an_archive_that_grew_is_another_input(tmp_path, run, capsys):
    path = write_tar(tmp_path / "a.tar", samples(2))
    assert run("--input", path) == 0
    write_tar(path, samples(3))
    assert run("--input", path) == 1 and f"input.{path}" in capsys.readouterr().err


def test_missing_and_torn_shards_are_named(tmp_path, run, capsys):
    path = write_tar(tmp_path / "a.tar", samples(10))
    assert run("--input", path) == 0
    out = tmp_path / "out"
    (out / "codes-00002.parquet").unlink()
    assert run("--input", path) == 1 and "2 shards of 3" in capsys.readouterr().err
    manifest = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    (out / "codes-00001.parquet").write_bytes(b"PAR1")
    assert run("--input", path) == 1 and "codes-00001.parquet' is not usable; it is no shard" in capsys.readouterr().err
    (out / "codes-00000.parquet").unlink()
    assert run("--input", path) == 1 and "codes-00000.parquet is missing" in capsys.readouterr().err
    (out / "manifest.json").unlink()
    assert run("--input", path) == 1 and "without a manifest.json" in capsys.readouterr().err


# ---- bad input


BAD_SAMPLES = [
    ({"a.png": png(picture(0))}, "image without a caption"),
    ({"a.png": png(picture(0)), "a.json": b'{"title": "t"}'}, "image without a caption.*it has title"),
    ({"a.txt": b"a"}, "caption without an image"),
    ({"a.png": png(picture(0)), "a.jpg": b"", "a.txt": b"a"}, "more than one image for a caption"),
    ({"a.png": png(picture(0)), "a.txt": b" \n"}, "empty caption"),
    ({"a.png": png(picture(0)), "a.txt": b"\xff\xfe"}, "caption that is no UTF-8"),
    ({"a.png": png(picture(0)), "a.json": b"{"}, "not JSON in UTF-8"),
    ({"a.png": png(picture(0)), "a.json": b"[1]"}, "not an object"),
    ({"a.png": png(picture(0)), "a.json": b'{"caption": ["a"]}'}, "caption that is no text"),
    ({"a.png": png(picture(0)), "a.json": b'{"caption": "\\ud800"}'}, "caption that is no Unicode"),
    ({"a.png": b"", "a.txt": b"a"}, "image that cannot be read"),
    ({"a.png": png(picture(0))[:60], "a.txt": b"a"}, "image that cannot be read"),
    ({"a.png": png(picture(0)), "a.txt": b"a" * (1 << 20) + b"b"}, "caption that is too large"),
]


@pytest.mark.parametrize(("members", "reason"), BAD_SAMPLES)
def test_bad_samples_are_refused_by_name_or_counted(tmp_path, run, capsys, caplog, members, reason):
    path = write_tar(tmp_path / "a.tar", {**samples(1), **members, **samples(1, 5)})
    assert run("--input", path) == 1
    error = capsys.readouterr().err
    assert "1 unusable record (1 × " in error and f"{path}:a" in error and "--skip-bad" in error
    assert not list((tmp_path / "out").glob("codes*"))
    assert run("--input", path, "--skip-bad") == 0  # the settings are the same
    assert re.search(reason, caplog.text, re.DOTALL)
    assert [row["caption"] for row in rows_of(tmp_path / "out")] == ["picture 0", "picture 5"]
    assert run("--input", path) == 1 and "1 unusable record" in capsys.readouterr().err


def test_a_member_that_is_too_large_is_not_read(tmp_path, run, caplog, monkeypatch):
    monkeypatch.setattr("maskgrpo_plugin.data.captioned_images.MOST_BYTES", 500)
    path = write_tar(tmp_path / "a.tar", {"a.png": bytes(501), "a.txt": b"a", **samples(1)})
    assert run("--input", path, "--skip-bad") == 0
    assert "1 × image that is too large" in caplog.text and "501 bytes of at most 500" in caplog.text


def test_decompression_bombs_are_counted(tmp_path, run, caplog, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    members = {"a.png": png(picture(0, 11, 10)), "a.txt": b"a", "b.png": png(picture(0, 30, 10)), "b.txt": b"b"}
    assert run("--input", write_tar(tmp_path / "a.tar", {**members, **samples(1)}), "--skip-bad") == 0
    assert "2 × image that is too large" in caplog.text


def test_of_a_folder_unnamed_images_and_missing_ones_are_counted(tmp_path, run, caplog, pictures):
    lines = [
        {"file_name": "0.png", "text": "zero"},
        {"file_name": "none.png", "text": "none"},
        {"file_name": "../secret.png", "text": "up"},
        {"file_name": "/etc/secret.png", "text": "root"},
        {"text": "no image"},
        {"file_name": "0.png"},
        {"file_name": 3, "text": "three"},
    ]
    (pictures / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\nbroken\n")
    assert run("--input", pictures, "--skip-bad") == 0
    assert len(rows_of(tmp_path / "out")) == 1
    for counted in (
        "1 × image that does not exist",
        "2 × path of an image that is not relative",
        "1 × caption without an image",
        "2 × image without a caption",
        "1 × record without an image",
        "1 × not JSON in UTF-8",
    ):
        assert counted in caplog.text
    assert f"{pictures / 'sub' / '1.png'}: image without a caption" in caplog.text


def test_a_line_with_another_number_of_columns_is_counted(tmp_path, run, caplog, pictures):
    (pictures / "captions.tsv").write_text("0.png\tzero\nsub/1.png\n\n0.png\ta\tb\n")
    assert run("--input", pictures / "captions.tsv", "--skip-bad") == 0
    assert "2 × another number of columns" in caplog.text and "captions.tsv:4" in caplog.text


@pytest.mark.parametrize("damage", ["cut", "header", "no archive"])
def test_an_archive_that_breaks_off_is_an_error_and_never_its_end(tmp_path, run, capsys, damage):
    path, next_one = write_tar(tmp_path / "a.tar", samples(4)), write_tar(tmp_path / "b.tar", samples(1, 9))
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: 2048 + 700]
    elif damage == "header":
        content[4096 : 4096 + 100] = b"x" * 100
    else:
        content = b"no archive"
    path.write_bytes(content)
    assert run("--input", path, next_one) == 1
    assert f"{path}: input that cannot be read to its end" in capsys.readouterr().err
    assert run("--input", path, next_one, "--skip-bad", "--rows-per-shard", 1, "--overwrite") == 0
    captions = [row["caption"] for row in rows_of(tmp_path / "out")]
    assert captions[-1] == "picture 9" and len(captions) == {"cut": 2, "header": 3, "no archive": 1}[damage]
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["skipped"] == {"input that cannot be read to its end": 1}


def test_reading_stops_within_a_shard_of_the_first_bad_record(tmp_path, run, capsys):
    members = samples(30)
    members |= {"005.png": b"", "006.png": b"", "029.png": b""}
    path = write_tar(tmp_path / "a.tar", members)
    assert run("--input", path) == 1
    assert "2 unusable records (2 × image that cannot be read)" in capsys.readouterr().err
    assert len(rows_of(tmp_path / "out")) == 4
    assert run("--input", path, "--skip-bad") == 0 and len(rows_of(tmp_path / "out")) == 27


def test_nothing_usable_is_an_error(tmp_path, run, capsys):
    path = write_tar(tmp_path / "a.tar", {"a.txt": b"a"})
    assert run("--input", path, "--skip-bad") == 1
    assert "no usable record" in capsys.readouterr().err


BAD_OPTIONS = [
    (["--input", "none.tar"], "--input='none.tar'.*no such file"),
    (["--input", "."], "--input='.'.*none of captions.jsonl"),
    (["--input", "a.zip"], "--input='a.zip'.*allowed: a folder, .tar"),
    (["--resolution", 9], "--resolution=9.*multiples of 2"),
    (["--image-tokenizer", "none"], "--image-tokenizer='none'"),
    (["--model", "none"], "--model='none'"),
    (["--device", "cuda:99"], "--device='cuda:99'"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_OPTIONS)
def test_bad_options_are_named(tmp_path, run, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"")
    write_tar(tmp_path / "a.tar", samples(1))
    assert run("--input", "a.tar", *arguments) == 1
    assert re.search(message, capsys.readouterr().err)


def test_a_tokenizer_or_model_that_does_not_fit_is_refused(tmp_path, run, tiny_digits, tiny_run, vq, capsys):
    path = write_tar(tmp_path / "a.tar", samples(1))
    assert run("--input", path, "--model", tiny_run / "model") == 1
    assert "have no images" in capsys.readouterr().err
    for folder in (tiny_digits / "model", tiny_run / "model", tiny_run):  # other models, and none
        assert run("--input", path, "--image-tokenizer", folder) == 1
        assert f"--image-tokenizer='{folder}'" in capsys.readouterr().err
    config = json.loads((vq / "config.json").read_text())
    small = tmp_path / "small"
    small.mkdir()
    (small / "config.json").write_text(json.dumps({**config, "code_bits": 5}))
    (small / "model.safetensors").write_bytes((vq / "model.safetensors").read_bytes())
    assert run("--input", path, "--image-tokenizer", small, "--model", tiny_digits / "model") == 1
    assert "32 codes; allowed for this checkpoint are 64" in capsys.readouterr().err
    assert run("--input", path, "--image-tokenizer", small) == 1
    assert "another shape" in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("codes*"))
