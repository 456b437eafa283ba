"""The generation command on tiny models: what it writes, that a seed decides it, and what it refuses."""

import json
import os
import re
import shutil
import subprocess
import sys

import forked_python
import numpy as np
import pytest
from PIL import Image

from maskgrpo_plugin import evaluate
from maskgrpo_plugin.generate import main

SHORT = ["--length", "8", "--block-length", "4"]
DRAWN = [*SHORT, "--temperature", "1"]
SUMS = ["12+34=", "9+8=", "77+11=", "50+5="]


def write(path, lines):
    path.write_text("".join(line + "\n" for line in lines))
    return path


def run(capsys, *options):
    """Run the command as JSON; returns its completions."""
    assert main([*map(str, options), "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def refused(capsys, *options):
    """Run the command, which must refuse in one line; returns the line."""
    try:
        status = main([*map(str, options)])
    except SystemExit as ended:
        status = ended.code
    captured = capsys.readouterr()
    assert status == 2 and captured.out == ""
    lines = [line for line in captured.err.splitlines() if not line.startswith("WARNING")]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def of_model(folder, name="model"):
    return ["--model", folder / name]


def of_images(folder):
    return [*of_model(folder), "--image-tokenizer", folder / "vq"]


# ---- texts


def test_a_prompt_gives_its_text_and_nothing_else(tiny_run, capsys):
    assert main([*map(str, of_model(tiny_run)), *SHORT, "--prompt", SUMS[0]]) == 0
    shown = capsys.readouterr().out
    (row,) = run(capsys, *of_model(tiny_run), *SHORT, "--prompt", SUMS[0])
    assert shown == row["text"] + "\n"


def test_texts_are_those_of_evaluation(tiny_run, tmp_path, capsys):
    import pyarrow.parquet as pq

    rows = pq.read_table(tiny_run / "data" / "validation.parquet").to_pylist()[:5]
    prompts = write(tmp_path / "prompts.txt", [row["prompt"][-1]["content"] for row in rows])
    options = ["--block-length", "4", "--temperature", "1", "--samples", "2", "--seed", "3", "--ordering", "margin"]
    data = ["--data", str(tiny_run / "data" / "validation.parquet"), "--limit", "5", "--lengths", "8"]
    out = ["--output-dir", str(tmp_path / "out")]
    assert evaluate.main(["--model", str(tiny_run / "model"), *data, *out, *options]) == 0
    capsys.readouterr()
    lines = (tmp_path / "out" / "generations.jsonl").read_text().splitlines()
    expected = {(row["prompt"], row["sample"]): row for row in map(json.loads, lines)}
    made = run(capsys, *of_model(tiny_run), "--prompts", prompts, "--length", "8", *options)
    assert len(made) == len(expected) == 10
    for row in made:
        own = expected[row["prompt"], row["sample"]]
        assert (row["text"], row["seed"], row["model_calls"]) == (own["text"], own["seed"], own["model_calls"])
        assert row["tokens"] == own["effective_tokens"]


@pytest.mark.parametrize("name", ["model", "model_ar"])
def test_a_seed_gives_the_same_text_whatever_the_batch(tiny_run, tmp_path, capsys, name):
    prompts = write(tmp_path / "prompts.txt", SUMS)
    length = ["--length", "8", "--temperature", "1", "--samples", "2"]
    options = [*of_model(tiny_run, name), "--prompts", prompts, *length]
    made = [run(capsys, *options, "--batch-size", size) for size in (1, 3, 8)]
    assert made[0] == made[1] == made[2]
    assert [(row["row"], row["sample"]) for row in made[0]] == [(row, n) for row in range(4) for n in range(2)]
    other = run(capsys, *options, "--seed", 1)
    assert [row["text"] for row in other] != [row["text"] for row in made[0]]
    assert len({row["text"] for row in made[0]}) > 4


def test_options_reach_the_sampler(tiny_run, capsys):
    few = run(capsys, *of_model(tiny_run), *SHORT, "--prompt", SUMS[0], "--steps", 2, "--early-stop", "false")
    by_key = ["--set", "rollout.sampler.options.steps=2", "rollout.sampler.options.early_stop=false"]
    assert run(capsys, *of_model(tiny_run), *SHORT, "--prompt", SUMS[0], *by_key) == few
    assert few[0]["model_calls"] == 2


def test_a_verl_checkpoint_is_merged_first(tiny_run, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM

    from maskgrpo_plugin.models.llada import LLaDAConfig

    actor = tmp_path / "checkpoints" / "global_step_3" / "actor"
    (actor / "huggingface").mkdir(parents=True)
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    assert isinstance(model.config, LLaDAConfig)
    torch.save(model.state_dict(), actor / "model_world_size_1_rank_0.pt")
    for file in (tiny_run / "model").iterdir():
        if file.suffix != ".safetensors":
            (actor / "huggingface" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("3")
    options = [*DRAWN, "--prompt", SUMS[0]]
    merged = ["--model", tmp_path / "checkpoints", "--merged-dir", tmp_path / "merged"]
    assert run(capsys, *merged, *options) == run(capsys, *of_model(tiny_run), *options)
    (actor / "model_world_size_1_rank_0.pt").write_bytes(b"torn")
    assert "--model=" in refused(capsys, *merged[:2], "--merged-dir", tmp_path / "other", *options)


def test_several_texts_have_headings(tiny_run, tmp_path, capsys):
    prompts = write(tmp_path / "prompts.txt", [SUMS[0], "", SUMS[1]])
    assert main([*map(str, of_model(tiny_run)), *SHORT, "--prompts", str(prompts)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[1, sample 1] 12+34=" and "[2, sample 1] 9+8=" in lines


# ---- images


def test_images_and_their_grid_are_written(tiny_digits, tmp_path, capsys):
    prompts = write(tmp_path / "prompts.jsonl", ['{"prompt": "a handwritten two"}', '{"caption": "a handwritten six"}'])
    options = [*of_images(tiny_digits), "--to", "image", "--prompts", prompts, "--samples", 3, "--steps", 4]
    drawn = ["--temperature", 1, "--cfg-scale", 1.5]
    out, other = tmp_path / "deep" / "out", tmp_path / "other"
    rows = run(capsys, *options, *drawn, "--output-dir", out)
    run(capsys, *options, *drawn, "--output-dir", other, "--batch-size", 2)
    names = [f"{row:05d}-{sample:02d}.png" for row in range(2) for sample in range(3)]
    assert sorted(file.name for file in out.iterdir()) == sorted([*names, "00000-grid.png", "00001-grid.png"])
    assert [row["image"] for row in rows] == [str(out / name) for name in names]
    assert {(row["tokens"], row["model_calls"]) for row in rows} == {(16, 4)}
    for name in names:
        assert pixels(out / name).shape == (8, 8, 3)
        assert np.array_equal(pixels(out / name), pixels(other / name))
    assert len({pixels(out / name).tobytes() for name in names}) == 6
    grid = pixels(out / "00001-grid.png")  # two columns of 64 pixels with gaps of 2, eight for each pixel
    for sample, (left, top) in enumerate([(2, 2), (68, 2), (2, 68)]):
        assert np.array_equal(grid[top : top + 64 : 8, left : left + 64 : 8], pixels(out / names[3 + sample]))


def test_images_are_those_of_evaluation(tiny_digits, tmp_path, capsys):
    prompts = write(tmp_path / "digits.txt", ["a handwritten two", "a handwritten six"])
    options = ["--prompts", str(prompts), "--sampler", "maskgit", "--temperature", "1", "--steps", "3", "--seed", "5"]
    model = [*map(str, of_images(tiny_digits)), *options]
    assert evaluate.main([*model, "--output-dir", str(tmp_path / "evaluated")]) == 0
    capsys.readouterr()
    for row in run(capsys, *model, "--to", "image", "--output-dir", tmp_path / "out"):
        place = tmp_path / "evaluated" / "images" / "digits" / f"{row['row']:05d}" / "samples" / "00000.png"
        assert np.array_equal(pixels(row["image"]), pixels(place))


def test_replaced_images_are_counted(tiny_digits, tmp_path, capsys):
    options = [*of_images(tiny_digits), "--to", "image", "--prompt", "a handwritten two", "--steps", 2]
    run(capsys, *options, "--output-dir", tmp_path)
    assert main([*map(str, options), "--output-dir", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path / '00000-00.png'}\n"
    assert captured.err.splitlines()[-1] == f"{tmp_path}: 1 files took the place of others"


# ---- answers about pictures

NO_WORDS = [*range(10), *range(22, 86)]  # all tokens of the digits model but its twelve words


def picture(path, size=(8, 8), seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


def answers(capsys, folder, *options):
    """Answers of four words; a model with random weights would say image tokens and ends, too."""
    length = ["--length", 4, "--block-length", 4, "--early-stop", "false", "--forbidden-token-ids", str(NO_WORDS)]
    return [row["text"] for row in run(capsys, *of_images(folder), *length, *options)]


def test_an_answer_is_about_its_picture(tiny_digits, tmp_path, capsys):
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "digits"  # larger weights than at random, so that what is seen decides
    shutil.copytree(tiny_digits, folder)
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    for parameter in model.parameters():
        parameter.data *= 3
    model.save_pretrained(folder / "model")
    files = [picture(tmp_path / f"{seed}.png", seed=seed) for seed in range(6)]
    asked = ["--prompt", "a handwritten"]
    alone = [answers(capsys, folder, *asked, "--image", file)[0] for file in files]
    assert len(set(alone)) > 1
    lines = [json.dumps({"prompt": "a handwritten", "image": file.name}) for file in files]
    prompts = write(tmp_path / "asked.jsonl", lines)
    assert answers(capsys, folder, "--prompts", prompts) == alone


def test_an_answer_is_that_of_the_pictures_codes(tiny_digits, tmp_path, capsys):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from maskgrpo_plugin.diffusion.samplers import build_sampler
    from maskgrpo_plugin.models.families import build_family
    from maskgrpo_plugin.models.image_tokenizers import load_image_tokenizer

    file = picture(tmp_path / "one.png", seed=2)
    model = AutoModelForCausalLM.from_pretrained(tiny_digits / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_digits / "model")
    values = torch.from_numpy(pixels(file).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    codes = load_image_tokenizer(str(tiny_digits / "vq")).get_code(values)[0].tolist()
    family = build_family(model.config, tokenizer)
    prompt = family.understanding(codes, [{"role": "user", "content": "a handwritten"}], 4)
    options = {"steps": 2, "response_length": 4, "forbidden_token_ids": tuple(NO_WORDS)}
    sampler = build_sampler("semi_autoregressive", **options)
    canvas = torch.tensor([prompt.canvas_ids])
    ids = sampler.generate(model, canvas, mask_token_id=family.mask_token_id).sequences[0, -4:].tolist()
    expected = tokenizer.decode(ids)
    assert len(expected.split()) == 4
    assert answers(capsys, tiny_digits, "--prompt", "a handwritten", "--image", file) == [expected]


def test_the_middle_of_a_picture_is_seen(tiny_digits, tmp_path, capsys):
    from maskgrpo_plugin.generation.pictures import read_picture

    values = np.random.default_rng(0).integers(0, 256, (10, 20, 4), dtype=np.uint8)
    values[..., 3] = 255
    values[:, :5, 3] = 0
    Image.fromarray(values).save(tmp_path / "wide.png")
    assert np.array_equal(read_picture(tmp_path / "wide.png", 10), values[:, 5:15, :3])
    values[..., 3] = 0
    Image.fromarray(values).save(tmp_path / "clear.png")
    assert (read_picture(tmp_path / "clear.png", 10) == 255).all()


# ---- a chat


def chat(monkeypatch, capsys, lines, *options):
    """Run the command as in a terminal in which these lines are typed; returns what it writes to stdout."""
    left = iter(lines)
    monkeypatch.setattr("maskgrpo_plugin.generate.is_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt: next(left))
    assert main([*map(str, options)]) == 0
    return capsys.readouterr().out.splitlines()


def test_a_chat_goes_on_by_the_chat_template(tiny_run, monkeypatch, capsys):
    # the quickstart's template puts the turns behind each other, so that a conversation is also one long prompt
    options = [*of_model(tiny_run), *SHORT, "--early-stop", "false"]
    first, second, third = chat(monkeypatch, capsys, [SUMS[0], SUMS[1], "/reset", SUMS[1], "/quit"], *options)
    for prompt, answer in ((SUMS[0], first), (SUMS[0] + first + SUMS[1], second), (SUMS[1], third)):
        (row,) = run(capsys, *options, "--prompt", prompt)
        assert row["text"] == answer


def test_a_chat_about_images_numbers_them_on(tiny_digits, tmp_path, monkeypatch, capsys):
    options = [*of_images(tiny_digits), "--to", "image", "--steps", 2, "--samples", 2, "--temperature", 1]
    options += ["--output-dir", tmp_path]
    run(capsys, *options, "--prompt", "a handwritten one")
    lines = chat(monkeypatch, capsys, ["a handwritten two", "a handwritten six", "/quit"], *options)
    names = [f"{row:05d}-{part}.png" for row in (1, 2) for part in ("00", "01", "grid")]
    assert lines == [str(tmp_path / name) for name in names]
    assert len(list(tmp_path.iterdir())) == 9


# ---- refusals


def test_a_checkpoint_that_is_not_there(tmp_path, capsys):
    assert "--model='" in refused(capsys, "--model", tmp_path / "nowhere", "--prompt", "1+1=")
    (tmp_path / "empty").mkdir()
    assert "neither config.json" in refused(capsys, "--model", tmp_path / "empty", "--prompt", "1+1=")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "nothing"}')
    assert "--model='" in refused(capsys, "--model", tmp_path / "empty", "--prompt", "1+1=")


def test_weights_that_cannot_be_read(tiny_run, tmp_path, capsys):
    for file in (tiny_run / "model").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes()[: 400 if file.suffix == ".safetensors" else None])
    assert f"--model='{tmp_path}'" in refused(capsys, "--model", tmp_path, "--prompt", "1+1=", *SHORT)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "1+1=", "--blok-length", "4"], "no option --blok-length; --block-length is the nearest"),
        (["--prompt", "1+1=", "--block_length", "4"], "no option --block_length; --block-length is the nearest"),
        (["--prompt", "1+1=", "--schedule", "cosine"], "--schedule='cosine'.*has no such option"),
        (["--prompt", "1+1=", "--ordering", "sideways"], "--ordering='sideways'.*low_confidence"),
        (["--prompt", "1+1=", "--block-length", "5"], "--block-length=5.*must divide"),
        (["--prompt", "1+1=", "--steps", "99"], "--steps=99"),
        (["--prompt", "1+1=", "--fill-token-id", "4"], "--fill-token-id=4.*the mask token"),
        (["--prompt", "1+1=", "--set", "rollout.sampler.options.nope=1"], "--nope=1.*no such option"),
        (["--prompt", "1+1=", "--set", "trainer.device=cpu"], "--set='trainer.device=cpu'"),
        (["--prompt", "1+1=", "--sampler", "nope"], "--sampler='nope'"),
        (["--prompt", "1+1=", "--samples", "2"], "--temperature=0.0.*the same"),
        (["--prompt", "1+1=", "--length", "4096"], "--length=4096.*256"),
        (["--prompt", "1+1=", "--length", "0"], "--length"),
        (["--prompt", "1<|mdm_mask|>="], "--prompt='1<.mdm_mask.>='.*holds the mask token"),
        (["--prompt", "1+1=", "--device", "abacus"], "--device='abacus'"),
        (["--prompt", "1+1=", "--trace-steps", "4"], "--trace-steps=4"),
        (["--prompt", "1+1=", "--output-dir", "out"], "--output-dir='out'"),
        (["--prompt", "1+1=", "--image-tokenizer", "vq"], "--image-tokenizer='vq'"),
        (["--prompt", "1+1=", "--prompts", "file"], "--prompts='file'.*not both"),
        (["--prompts", "/nowhere/prompts.txt"], "--prompts='/nowhere/prompts.txt'"),
        ([], "--prompt=None"),
        (["--prompt", "1+1=", "1+2="], "'1[+]2=' belongs to no option"),
    ],
)
def test_options_that_cannot_work_are_named(tiny_run, tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    length = [] if "--length" in options else ["--length", "8"]
    assert re.search(message, refused(capsys, *of_model(tiny_run), *length, *options))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", "\n \n", "holds no prompts"),
        ("none.jsonl", "", "holds no prompts"),
        ("torn.jsonl", '{"prompt": "a"}\n{"prom\n', "torn.jsonl:2.*not JSON"),
        ("other.jsonl", '{"prompt": "a"}\n\n{"question": "b"}\n', "other.jsonl:3.*no text under"),
        ("picture.jsonl", '{"prompt": "a", "image": 3}\n', "picture.jsonl:1.*path"),
        ("latin.txt", b"caf\xe9\n", "latin.txt"),
    ],
)
def test_files_of_prompts_that_cannot_work_are_named(tiny_run, tmp_path, capsys, name, content, message):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    line = refused(capsys, *of_model(tiny_run), *SHORT, "--prompts", tmp_path / name)
    assert line.startswith("error: --prompts=") and re.search(message, line)


def test_pictures_that_cannot_be_read_are_named(tiny_digits, tmp_path, capsys):
    asked = [*of_images(tiny_digits), "--length", 4, "--prompt", "a"]
    (tmp_path / "text.png").write_text("no picture")
    assert f"--image='{tmp_path}/text.png'" in refused(capsys, *asked, "--image", tmp_path / "text.png")
    assert "nowhere.png" in refused(capsys, *asked, "--image", tmp_path / "nowhere.png")
    torn = picture(tmp_path / "torn.png", (64, 64))
    torn.write_bytes(torn.read_bytes()[:200])
    assert "torn.png" in refused(capsys, *asked, "--image", torn)
    prompts = write(tmp_path / "asked.jsonl", ['{"prompt": "a", "image": "gone.png"}'])
    assert "gone.png" in refused(capsys, *of_images(tiny_digits), "--length", 4, "--prompts", prompts)


def test_images_of_a_model_without_image_tokens_are_refused(tiny_run, tiny_digits, tmp_path, capsys):
    tokenizer = ["--image-tokenizer", tiny_digits / "vq", "--prompt", "1+1="]
    out = ["--output-dir", tmp_path]
    assert "'llada' and has no image tokens" in refused(capsys, *of_model(tiny_run), *tokenizer, "--to", "image", *out)
    file = picture(tmp_path / "one.png")
    assert "--image=" in refused(capsys, *of_model(tiny_run), *tokenizer, "--image", file)


def test_settings_of_images_that_cannot_work_are_named(tiny_digits, tiny_run, tmp_path, capsys):
    asked = ["--to", "image", "--prompt", "a handwritten two"]
    out = ["--output-dir", tmp_path / "out"]
    assert "--output-dir=None" in refused(capsys, *of_images(tiny_digits), *asked)
    assert "--image-tokenizer=None" in refused(capsys, *of_model(tiny_digits), *asked, *out)
    other = ["--image-tokenizer", tiny_run / "model"]
    assert "--image-tokenizer=" in refused(capsys, *of_model(tiny_digits), *other, *asked, *out)
    assert "--image-size=" in refused(capsys, *of_images(tiny_digits), *asked, *out, "--image-size", 9, 8)
    assert "--length=8" in refused(capsys, *of_images(tiny_digits), *asked, *out, "--length", 8)
    sampler = ["--sampler", "semi_autoregressive"]
    assert "emerge, maskgit" in refused(capsys, *of_images(tiny_digits), *asked, *out, *sampler)
    file = ["--image", picture(tmp_path / "one.png")]
    assert "--image=" in refused(capsys, *of_images(tiny_digits), *asked, *out, *file)
    size = ["--image-size", 8, 16]
    assert "--image-size=[8, 16]" in refused(capsys, *of_images(tiny_digits), "--prompt", "a", *file, *size)
    taken = write(tmp_path / "taken", ["a file"])
    where = ["--output-dir", taken / "out"]
    assert "--output-dir=" in refused(capsys, *of_images(tiny_digits), *asked, *where)
    line = refused(capsys, *of_images(tiny_digits), *asked, *out, "--trace", taken / "page.html")
    assert "--trace=" in line
    assert "it is a folder" in refused(capsys, *of_images(tiny_digits), *asked, *out, "--trace", tmp_path)


@pytest.mark.parametrize(
    "options", [["--steps", "4"], ["--ordering", "random"], ["--trace", "page.html"], ["--sampler", "emerge"]]
)
def test_an_autoregressive_checkpoint_has_no_sampler(tiny_run, tmp_path, capsys, monkeypatch, options):
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *of_model(tiny_run, "model_ar"), "--prompt", "1+1=", *options)
    flag = options[0] if "emerge" not in options else "--sampler"
    assert line.startswith(f"error: {flag}=")


def test_help_and_options_import_no_verl():
    code = (
        "import sys, maskgrpo_plugin.evaluation.options, maskgrpo_plugin.generate\n"
        "assert maskgrpo_plugin.generate.make_parser('x').format_help()\n"
        "sys.exit('verl' in sys.modules)"
    )
    python = forked_python.command()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([*python, "-W", "ignore", "-c", code], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
