"""Fixtures shared by the tests: a tiny LLaDA-layout checkpoint with the quickstart's tokenizer, and its data."""

import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # the files run side by side, and so do their processes
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # else Ray starts workers for no actor
os.environ.setdefault("RAY_worker_niceness", "0")  # else its workers stand still while another file computes

import torch

if torch.cuda.device_count():  # two ranks on the CPU are two ranks on any machine
    os.environ |= {"VERL_PLATFORM": "cpu", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}  # CUDA does not survive a fork

sys.path.insert(0, str(Path(__file__).parent))

from example_modules import load_example
from golden_files import GOLDEN_DIR, missing, problem_of
from torchvision_ops import define_missing_operators

define_missing_operators()


def pytest_configure():
    """Refuse a GOLDEN_DIR without a family, which would skip every golden test, or with a part of one."""
    if problem := problem_of(GOLDEN_DIR):
        raise pytest.UsageError(f"GOLDEN_DIR: {problem}")


@pytest.fixture(scope="module", autouse=True)
def no_process_group_is_left():
    """A file that leaves a process group behind fails itself, and not the files after it in its worker."""
    yield
    assert not torch.distributed.is_initialized(), "the tests of this file left torch's process group"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden numbers, one folder per family."""
    return GOLDEN_DIR


@pytest.fixture(scope="session")
def golden_path(golden_dir):
    """A function from parts of a path below `golden_dir` to the path; a missing family skips the test and is named."""

    def find(*parts: str) -> Path:
        if reason := missing(parts[0]):
            pytest.skip(reason)
        return golden_dir.joinpath(*parts)

    return find


@pytest.fixture(scope="session")
def make_model():
    """The module that makes the quickstart's model and rows."""
    return import_module("maskgrpo_plugin.quickstart")


@pytest.fixture(scope="session")
def make_digits():
    """The module examples/digits/make_models.py."""
    return load_example("make_models", "digits")


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, make_model):
    """A folder as the quickstart's: `model`, `model_ar` (random weights) and `data`."""
    from maskgrpo_plugin.data.prepare import main as prepare

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = make_model.make_tokenizer()
    recipe = replace(make_model.Recipe(), d_model=32, n_layers=2, n_heads=4, mlp_hidden_size=64)
    for name, build in (("model", make_model.make_diffusion_model), ("model_ar", make_model.make_autoregressive_model)):
        build(tokenizer, recipe).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    options = ["--digits", "2", "--train-rows", "64", "--validation-rows", "16", "--seed", "0"]
    assert prepare(["arithmetic", *options, "--output-dir", str(folder / "data")]) == 0
    return folder


@pytest.fixture(scope="session")
def tiny_digits(tmp_path_factory, make_digits):
    """A folder as the digits example's: `model` (MMaDA) and `vq` (MAGVIT-v2), random weights, `data`, `data_mmu`."""
    from maskgrpo_plugin.data.rows import write_parquet
    from maskgrpo_plugin.models.magvitv2 import MAGVITv2, MAGVITv2Config

    digits = make_digits
    folder = tmp_path_factory.mktemp("digits")
    recipe = replace(digits.Recipe(), d_model=32, n_layers=2, mlp_hidden_size=64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vq = MAGVITv2(
            MAGVITv2Config(
                base_channels=8,
                channel_multipliers=(1, 2),
                encoder_blocks=(1, 1),
                decoder_blocks=(1, 1),
                code_bits=recipe.code_bits,
                norm_groups=4,
            )
        )
    vq.save_pretrained(folder / "vq")
    tokenizer = digits.make_tokenizer()
    digits.make_model(tokenizer, vq, recipe).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    for split, rows in (("train", 40), ("validation", 10)):
        write_parquet(digits.digit_rows(rows, split), folder / "data" / f"{split}.parquet")
        codes = torch.randint(64, (rows, 16), generator=torch.Generator().manual_seed(rows))
        questions = digits.question_rows(codes, torch.arange(rows) % 10, split)
        write_parquet(questions, folder / "data_mmu" / f"{split}.parquet")
    return folder
