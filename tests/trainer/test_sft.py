"""Supervised training on one and two CPU ranks against the formula written out; resume; what is refused."""

import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import forked_python
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from family_models import make_config, make_model, save_checkpoint
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))
import ranks
import sft_runs

from maskgrpo_plugin.data.rows import write_parquet
from maskgrpo_plugin.data.sft_rows import Example, RowReader
from maskgrpo_plugin.diffusion.estimators import Rows, build_estimator
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.checkpoints import resolve_checkpoint
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.trainer.sft_batches import BatchOrder
from maskgrpo_plugin.trainer.sft_checks import check_sft

ROOT = Path(__file__).parents[2]
SUMS = [(12, 7), (30, 5), (99, 99), (1, 1), (48, 2), (5, 77), (60, 60), (8, 13), (21, 34), (90, 19)]
BATCH, SEED, RATE, SMOOTHING = 4, 5, 0.5, 0.1


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sums")
    rows = [
        {"messages": [{"role": "user", "content": f"{a}+{b}="}, {"role": "assistant", "content": str(a + b)}]}
        for a, b in SUMS
    ]
    write_parquet(rows, folder / "train.parquet")
    write_parquet(rows[:3], folder / "validation.parquet")
    return folder


@pytest.fixture(scope="module")
def common(tiny_run, data):
    return [
        f"model.path={tiny_run}/model",
        f"data.train_files={data}/train.parquet",
        f"data.val_files={data}/validation.parquet",
        f"data.train_batch_size={BATCH}",
        f"data.micro_batch_size_per_gpu={BATCH}",
        "data.val_batch_size=null",
        "data.fill=batch",
        f"trainer.seed={SEED}",
        "trainer.total_training_steps=2",
        "trainer.export_dir=null",
        "trainer.target_val_loss=null",
        "data.val_draws=4",
        "data.max_length=16",
        "trainer.test_freq=-1",
        "trainer.val_before_train=true",
        *sft_runs.WHOLE_ANSWERS,
        *sft_runs.plain_descent(RATE),
    ]


VARIANTS = {
    "plain": [],
    "micro": ["data.micro_batch_size_per_gpu=1"],
    "dynamic": ["data.use_dynamic_bsz=true", "data.max_token_len_per_gpu=32"],
    "max_length": ["data.fill=max_length", "data.max_length=14"],
    "no_fill": ["data.fill=none"],
    "target": ["trainer.target_val_loss=1000", "trainer.test_freq=1"],
    "lora": ["model.lora_rank=4", "model.lora_alpha=8"],
    "blockwise": ["denoising.block_length=3", "data.fill=max_length", "data.max_length=14"],
}
BLOCKS = ["sdar", "sdar_moe", "llada2_moe", "fast_dllm_v2"]  # they attend in blocks of four tokens
FAMILIES = ["dream", "a2d_qwen3", "lladamoe", *BLOCKS]


@pytest.fixture(scope="module")
def families(tiny_run, tmp_path_factory):
    """Checkpoints of other families with the tiny run's tokenizer, by name."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    ids = {"mask_token_id": tokenizer.mask_token_id, "eos_token_id": tokenizer.eos_token_id}
    root = tmp_path_factory.mktemp("families")
    return {name: save_checkpoint(name, root / name, tokenizer, initializer_range=0.1, **ids) for name in FAMILIES}


@pytest.fixture(scope="module")
def one_rank(tiny_run, families, common, tmp_path_factory):
    out = tmp_path_factory.mktemp("sft_one")
    options = [[*common, *each] for each in VARIANTS.values()]
    options.append([*common, "model.model_type=language_model", f"model.path={tiny_run}/model_ar"])
    options += [[*common, f"model.path={folder}"] for folder in families.values()]
    return dict(
        zip([*VARIANTS, "autoregressive", *families], sft_runs.run(1, tiny_run, options, out), strict=True)
    ), out


def encoded(folder, pairs, fill):
    """Prompt and answer tokens of sums, the answers with end tokens up to the longest row, or to `fill` tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [([bos, *tokenizer.encode(f"{a}+{b}=")], [*tokenizer.encode(str(a + b)), eos]) for a, b in pairs]
    longest = max(len(p) + len(a) for p, a in rows) if fill is None else fill
    return [(p, a + [eos] * (longest - len(p) - len(a))) for p, a in rows]


def example_loss(model, example, key, *, step, strata, columns=None, block=None):
    """A loss by full logits: of a text −Σ log p / (t · L), or the mean of −log p over a block's masked tokens; of an
    image over `columns` alone and smoothed.
    """
    tokens = torch.tensor([example.prompt_ids + example.answer_ids])
    response = torch.zeros_like(tokens, dtype=torch.bool)
    response[0, len(example.prompt_ids) :] = torch.tensor(example.learned)
    image_tokens = response.long() if example.is_image else None
    keys = torch.tensor([key])
    attended, mask_token_id = torch.ones_like(response), model.config.mask_token_id
    stops = (model.config.eos_token_id,)
    rows = Rows(tokens, response, ~response, attended, keys, mask_token_id, stops, image_tokens=image_tokens)
    estimator = build_estimator("denoising", strata=strata, block_length=block)
    (one,) = estimator.passes(rows, seed=SEED, step=step, update=0)
    u = float(estimator.row_positions(keys, seed=SEED, step=step, update=0)[0])
    logits, length = all_logits(model, one.noisy, tokens), int(response.sum())
    masked = one.scored[0].nonzero().flatten().tolist()
    total = torch.zeros(())
    for n in masked:
        if example.is_image:
            log_probs = logits[n, columns[0] : columns[1]].log_softmax(-1)
            total = total - (1 - SMOOTHING) * log_probs[tokens[0, n] - columns[0]] - SMOOTHING * log_probs.mean()
        else:
            total = total - logits[n].log_softmax(-1)[tokens[0, n]]
    if example.is_image:
        assert len(masked) == max(round(max(math.cos(math.pi / 2 * u), 0.3) * length), 1)
        return total / len(masked)
    if block is not None:
        return total / max(len(masked), 1)
    return total / ((1e-3 + (1 - 1e-3) * u) * length)


def all_logits(model, noisy, tokens):
    """Logits (L, V) of a canvas (1, L), each in its token's place; of a block-causal model each block alone, behind
    the clean ones before it.
    """
    length, found = noisy.shape[1], []
    for start in range(0, length, model.block_length or length):
        end = min(start + (model.block_length or length), length)
        logits = model(torch.cat([tokens[:, :start], noisy[:, start:end]], 1)).logits[0]
        found.append((torch.cat([logits[:1], logits[:-1]]) if model.logits_shift else logits)[start:])
    return torch.cat(found)


def text(prompt, answer):
    """The example of a text."""
    return Example(tuple(prompt), tuple(answer), (True,) * len(answer))


def reference(folder, steps=2, fill=None, block=None):
    """SGD on LLaDA's objective, and the mean validation loss before the first step at four levels."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    held_out = encoded(folder, SUMS[:3], fill)
    with torch.no_grad():
        validation = [
            example_loss(model, text(*held_out[n]), draw * 3 + n, step=0, strata=12, block=block)
            for draw in range(4)
            for n in range(3)
        ]
    order = BatchOrder((len(SUMS),), (BATCH,), (1.0,), SEED)
    losses = []
    for step in range(1, steps + 1):
        slots = order.batch(step)
        rows = encoded(folder, [SUMS[slot.row] for slot in slots], fill)
        loss = sum(
            example_loss(model, text(*row), slot.key, step=step, strata=BATCH, block=block)
            for row, slot in zip(rows, slots, strict=True)
        )
        loss = loss / BATCH
        losses.append(sft_runs.descend(model, loss, RATE))
    return {
        "weights": dict(model.named_parameters()),
        "losses": losses,
        "validation": float(torch.stack(validation).mean()),
    }


def assert_same_weights(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name].detach(), atol=tolerance, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("variant", "fill", "block"),
    [("plain", None, None), ("max_length", 14, None), ("blockwise", 14, 3), *((name, None, None) for name in FAMILIES)],
)
def test_steps_and_losses_are_those_of_the_formula(one_rank, tiny_run, families, variant, fill, block):
    folder = families.get(variant, tiny_run / "model")
    expected, found = reference(folder, fill=fill, block=block), one_rank[0][variant]
    assert_same_weights(found["weights"], expected["weights"], 2e-5)
    for step, loss in enumerate(expected["losses"], start=1):
        assert found["metrics"][str(step)]["train/loss"] == pytest.approx(loss, abs=2e-5)
    assert found["metrics"]["0"]["val/loss"] == pytest.approx(expected["validation"], abs=2e-5)
    start = dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
    assert max(float((start[name] - w).abs().max()) for name, w in found["weights"].items()) > 1e-3


@pytest.mark.parametrize("variant", ["micro", "dynamic"])
def test_micro_batches_change_nothing(one_rank, variant):
    assert_same_weights(one_rank[0][variant]["weights"], one_rank[0]["plain"]["weights"], 2e-6)


def test_without_filling_only_the_first_end_token_is_learned(one_rank):
    lengths = {name: one_rank[0][name]["metrics"]["1"]["train/tokens"] for name in ("no_fill", "plain", "max_length")}
    assert lengths["max_length"] == BATCH * 14
    assert lengths["no_fill"] < lengths["plain"] <= lengths["max_length"]


def test_a_run_ends_once_the_validation_is_good_enough(one_rank):
    found, out = one_rank
    assert sorted(found["target"]["metrics"]) == ["0", "1"]
    assert found["target"]["metrics"]["1"]["val/loss"] <= 1000
    assert (out / str(list(VARIANTS).index("target")) / "global_step_1").is_dir()


def test_two_ranks_equal_one(one_rank, tiny_run, families, common, tmp_path):
    options = {name: [*common, *VARIANTS[name]] for name in ("micro", "dynamic")}
    half = f"data.micro_batch_size_per_gpu={BATCH // 2}"
    options |= {name: [*common, f"model.path={folder}", half] for name, folder in families.items()}
    for name, found in zip(options, sft_runs.run(2, tiny_run, list(options.values()), tmp_path), strict=True):
        alone = one_rank[0][name]
        assert_same_weights(found["weights"], alone["weights"], 2e-6)
        for step in ("0", "2"):
            assert found["metrics"][step]["val/loss"] == pytest.approx(alone["metrics"][step]["val/loss"], abs=1e-5)
        assert found["metrics"]["2"]["train/tokens"] == alone["metrics"]["2"]["train/tokens"]


def test_the_autoregressive_twin_learns_the_answer_and_its_end_alone(one_rank, tiny_run):
    folder = tiny_run / "model_ar"
    model = AutoModelForCausalLM.from_pretrained(folder)
    slots = BatchOrder((len(SUMS),), (BATCH,), (1.0,), SEED).batch(1)
    losses = []
    for prompt, answer in (encoded(folder, [SUMS[slot.row]], 0)[0] for slot in slots):
        log_probs = model(torch.tensor([prompt + answer])).logits[0].log_softmax(-1)
        places = range(len(prompt) - 1, len(prompt) + len(answer) - 1)
        losses.append(-sum(log_probs[n, (prompt + answer)[n + 1]] for n in places) / len(answer))
    found = one_rank[0]["autoregressive"]["metrics"]
    assert found["1"]["train/loss"] == pytest.approx(float(sum(losses)) / BATCH, abs=1e-5)
    assert found["2"]["val/loss"] < found["0"]["val/loss"]


def test_a_checkpoint_is_read_by_evaluation_with_and_without_an_adapter(one_rank, tiny_run, tmp_path):
    found, out = one_rank
    folders = {name: out / str(n) for n, name in enumerate(found)}
    for name in FAMILIES:
        model = AutoModelForCausalLM.from_pretrained(resolve_checkpoint(str(folders[name]), tmp_path / name))
        assert_same_weights(dict(model.named_parameters()), found[name]["weights"], 0)
        assert (
            model.config.model_type == make_config(name).model_type
            and model.block_length == make_model(name).block_length
        )
    plain = AutoModelForCausalLM.from_pretrained(resolve_checkpoint(str(folders["plain"]), tmp_path / "plain"))
    assert_same_weights(dict(plain.named_parameters()), found["plain"]["weights"], 0)
    merged = AutoModelForCausalLM.from_pretrained(resolve_checkpoint(str(folders["lora"]), tmp_path / "lora"))
    weights = found["lora"]["weights"]
    prefix = "base_model.model."
    name = next(name for name in weights if "lora_A" in name)
    base, up = name.replace("lora_A.default", "base_layer"), weights[name.replace("lora_A", "lora_B")]
    expected = weights[base] + 2.0 * up @ weights[name]  # alpha / rank
    got = dict(merged.named_parameters())[base.removeprefix(prefix).replace(".base_layer", "")]
    torch.testing.assert_close(got, expected)
    assert float(up.abs().max()) > 0


def test_resumed_runs_equal_one_that_was_not_stopped(tiny_run, common, tmp_path_factory):
    """Stopped within an epoch of two steps, at its end, and after it."""
    out = tmp_path_factory.mktemp("sft_resumed")
    adam = [*common, "optim.optimizer=AdamW", "optim.lr=1e-2", "optim.betas=[0.9,0.98]", "optim.lr_warmup_steps=3"]
    adam += ["optim.lr_scheduler_type=cosine", "trainer.save_freq=1", "trainer.resume_mode=auto", "model.lora_rank=2"]
    adam += ["trainer.total_training_steps=4"]
    job = {"run": sft_runs.train, "name": "sft_quickstart"}
    options = [[*adam, f"trainer.default_local_dir={out}/whole"]]
    (whole,) = ranks.run_ranks(1, tiny_run, options, None, out / "a", **job)[0]
    stops = (1, 2, 3)
    for stop in stops:
        shutil.copytree(out / "whole", out / str(stop))
        (out / str(stop) / "latest_checkpointed_iteration.txt").write_text(str(stop))
    options = [[*adam, f"trainer.default_local_dir={out}/{stop}"] for stop in stops]
    for stop, resumed in zip(stops, ranks.run_ranks(1, tiny_run, options, None, out / "b", **job)[0], strict=True):
        assert_same_weights(resumed["weights"], whole["weights"], 1e-6)
        for step in range(stop + 1, 5):
            found, expected = (each["metrics"][str(step)]["train/loss"] for each in (resumed, whole))
            assert found == pytest.approx(expected, abs=1e-6)


@pytest.fixture(scope="module")
def mixture(tiny_digits, tmp_path_factory):
    """Files of captioned images, of sums, and of questions about images, by name."""
    folder = tmp_path_factory.mktemp("mixture")
    config = AutoConfig.from_pretrained(tiny_digits / "model")
    generator = torch.Generator().manual_seed(0)

    def codes():
        return torch.randint(config.codebook_size, (config.num_vq_tokens,), generator=generator).tolist()

    talk = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
    write_parquet([{"caption": str(n), "image_codes": codes()} for n in range(6)], folder / "t2i.parquet")
    write_parquet([{"messages": talk}] * 4, folder / "text.parquet")
    write_parquet([{"messages": talk, "image_codes": codes()} for _ in range(4)], folder / "mmu.parquet")
    return {name: str(folder / f"{name}.parquet") for name in ("t2i", "text", "mmu")}


def test_a_mixture_is_the_weighted_sum_of_its_sources_losses(tiny_digits, common, mixture, tmp_path_factory):
    """Images by the cosine's share and over the codebook alone, texts by 1/t, each source's mean by its weight."""
    folder = tiny_digits / "model"
    weights = {"t2i": 1.0, "text": 0.1, "mmu": 1.0}
    shares = {"t2i": 3, "text": 1, "mmu": 2}
    sources = [
        f"+data.mixture.{name}={{train_files: {mixture[name]}, share: {shares[name]}, weight: {weights[name]}"
        + (f", val_files: {mixture[name]}}}" if name != "text" else "}")
        for name in mixture
    ]
    options = [*common, f"model.path={folder}", *sources, "data.train_batch_size=6", "data.micro_batch_size_per_gpu=2"]
    options += ["data.max_length=64", "data.fill=none", "data.caption_dropout=1.0", "trainer.total_training_steps=1"]
    options += [f"denoising.label_smoothing={SMOOTHING}", f"images.image_tokenizer={tiny_digits}/vq"]
    options += ["images.count=3", "images.options={steps: 4, cfg_scale: 1.0}"]
    out = tmp_path_factory.mktemp("sft_mixture")
    (found,) = sft_runs.run(1, tiny_digits, [options], out)
    first, last = (np.asarray(Image.open(out / "0" / "images" / f"step_{n}.png")) for n in (0, 1))
    assert first.shape == last.shape and (first != last).any()  # the same noise, another model
    metrics = found["metrics"]["1"]
    mean = (6 * metrics["val/t2i/loss"] + 4 * metrics["val/mmu/loss"]) / 10
    assert metrics["val/loss"] == pytest.approx(mean, abs=1e-6) and "val/text/loss" not in metrics

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    family = build_family(model.config, tokenizer)
    reader = RowReader(
        tokenizer=tokenizer, stop_token_ids=family.stop_token_ids, end_token_id=tokenizer.eos_token_id, family=family
    )
    rows = {name: pq.read_table(file).to_pylist() for name, file in mixture.items()}
    order = BatchOrder(tuple(map(len, rows.values())), (3, 1, 2), tuple(weights.values()), SEED)
    sums = dict.fromkeys(rows, 0.0)
    for slot in order.batch(1):
        name = list(rows)[slot.source]
        (example,) = reader.read(rows[name][slot.row])
        given = {"step": 1, "strata": 6, "columns": family.image.vocab_slice}
        sums[name] = sums[name] + example_loss(model, example.without_caption(), slot.key, **given)
    loss = sum(weights[name] * sums[name] / shares[name] for name in rows)
    assert found["metrics"]["1"]["train/loss"] == pytest.approx(float(loss), abs=2e-5)
    loss.backward()
    for name, parameter in model.named_parameters():
        expected = parameter.detach() - (0 if parameter.grad is None else RATE * parameter.grad)
        torch.testing.assert_close(found["weights"][name], expected, atol=2e-5, rtol=0, msg=name)


SHIPPED = {"sft_llada_8b_s1k": "model", "sft_mmada_8b_t2i": "digits"}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_8b_configs_train_a_small_checkpoint(tiny_run, tiny_digits, data, mixture, tmp_path, name):
    """Their own settings but for the place, the number of rows and a learning rate that shows in one step."""
    is_text = SHIPPED[name] == "model"
    files = f"{data}/train.parquet" if is_text else mixture["t2i"]
    folder = tiny_run if is_text else tiny_digits
    options = [
        f"model.path={folder}/model",
        f"data.train_files={files}",
        "data.val_files=null",
        "data.train_batch_size=4",
        "data.micro_batch_size_per_gpu=2",
        "data.max_length=64",
        "optim.lr_warmup_steps=0",
        "optim.lr_scheduler_type=constant",
        "trainer.device=cpu",
        "trainer.logger=[file]",
        "trainer.total_training_steps=3",
        f"trainer.default_local_dir={tmp_path}/run",
        f"trainer.export_dir={tmp_path}/model",
    ]
    job = {"run": sft_runs.train, "name": name, "folder_key": None}
    (found,) = ranks.run_ranks(1, folder, [options], None, tmp_path / "out", **job)[0]
    learned = {key: value for key, value in found["weights"].items() if not is_text or "lora_" in key}
    assert {value.dtype for value in learned.values()} == {torch.float32}
    start = AutoModelForCausalLM.from_pretrained(folder / "model")
    end = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    if is_text:  # three steps of 1e-5 on B of a new adapter
        ups = torch.cat([value.flatten() for key, value in learned.items() if "lora_B" in key])
        assert float((ups.abs() > 1e-6).float().mean()) > 0.9
    else:
        moved = [float((a - b).detach().abs().max()) for a, b in zip(start.parameters(), end.parameters(), strict=True)]
        assert max(moved) == pytest.approx(3 * 3e-6, rel=0.5)
    assert found["metrics"]["3"]["train/loss"] > 0


BROKEN = {
    "data.train_batch_size=0": "data.train_batch_size",
    "data.train_batch_size=3": "data.train_batch_size",  # on two ranks
    "data.micro_batch_size_per_gpu=4": "data.micro_batch_size_per_gpu",  # of two rows of a rank
    "data.fill=sometimes": "data.fill",
    "data.truncation=left": "data.truncation",
    "data.caption_dropout=1.5": "data.caption_dropout",
    "data.val_draws=0": "data.val_draws",
    "trainer.target_val_loss=-1": "trainer.target_val_loss",
    "trainer.target_val_loss=1 data.val_files=null": "trainer.target_val_loss",
    "data.max_length=100000": "data.max_length",
    "data.custom_cls.path=mine.py": "data.custom_cls.path",
    "data.train_files=null": "data.train_files",
    "denoising.least_level=2": "denoising.least_level",
    "denoising.block_length=0": "denoising.block_length",
    "denoising.block_weights=rows": "denoising.block_weights",
    "+denoising.nope=1": "denoising.nope",
    "optim.lr=0": "optim.lr",
    "images.count=0": "images.count",
    "trainer.experiment_name=${nowhere}": "trainer.experiment_name",
    "optim.lr_scheduler_type=linear": "optim.lr_scheduler_type",
    "engine.strategy=fsdp": "engine.strategy",
    "model.path=nowhere": "model.path",
    "model.model_type=value_model": "model.model_type",
    "model.model_type=language_model": "model.path",
    "model.lora_rank=-1": "model.lora_rank",
    "trainer.device=cuda": "trainer.device",
    "trainer.test_freq=sometimes": "trainer.test_freq",
    "trainer.total_training_steps=0": "trainer.total_training_steps",
    f"trainer.export_dir={ROOT}": "trainer.export_dir",
    "+data.mixture.a.train_files=null": "data.mixture.a.train_files",
}


@pytest.mark.parametrize("override", BROKEN)
def test_a_setting_that_cannot_work_is_named_before_anything_is_built(tiny_run, common, override):
    config = ranks.compose_config(
        tiny_run, *common, "data.micro_batch_size_per_gpu=1", *override.split(), name="sft_quickstart"
    )
    with pytest.raises(OptionError) as caught:
        check_sft(config, 2)
    assert caught.value.key == BROKEN[override]


@pytest.mark.parametrize("name", ["sft_quickstart", "sft_quickstart_ar"])
def test_the_quickstarts_configs_fit_what_its_script_makes(make_model, tmp_path, name):
    recipe = replace(make_model.Recipe(), d_model=32, n_layers=1, train_rows=80, validation_rows=10)
    make_model.make(tmp_path, recipe)
    check_sft(ranks.compose_config(tmp_path, name=name))


@pytest.mark.slow
def test_the_command_trains_and_says_in_one_line_what_cannot_work(tiny_run, common, tmp_path):
    command = [*forked_python.command(), "-m", "maskgrpo_plugin.sft", "--config-name", "sft_quickstart"]
    place = [f"quickstart_dir={tiny_run}", f"trainer.default_local_dir={tmp_path}", f"hydra.run.dir={tmp_path}/hydra"]

    def start(*overrides):
        return subprocess.run(
            [*command, *place, *common, *overrides], cwd=ROOT, capture_output=True, text=True, timeout=600
        )

    bad = start("optim.lr=-1")
    assert bad.returncode == 2 and "Traceback" not in bad.stderr
    assert "maskgrpo_plugin: optim.lr=-1 is not usable; allowed: numbers more than 0" in bad.stderr
    missing = start("data.train_files=nowhere.parquet")
    assert missing.returncode == 2 and "data.train_files='nowhere.parquet'" in missing.stderr
    good = start("trainer.logger=[console]", f"trainer.export_dir={tmp_path}/model")
    assert good.returncode == 0, good.stderr[-3000:]
    assert math.isfinite(float(good.stdout.split("train/loss:")[1].split()[0]))
    assert (tmp_path / "global_step_2" / "data_0.pt").is_file()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert exported.config.model_type == "llada" and exported.dtype == torch.float32
