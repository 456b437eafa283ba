"""The registry of image scorers, the worker around one, and the scorers that need no heavy library."""

import asyncio
import math

import numpy as np
import pytest
from image_helpers import FILE, AsyncScorer, BrightnessScorer, sample, text_image

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.rewards import images
from maskgrpo_plugin.rewards.images import ScorerUnavailable, build_scorer, register_scorer
from maskgrpo_plugin.rewards.images.scorers.ocr import edit_distance, quoted_text, text_similarity
from maskgrpo_plugin.rewards.images.worker import ScorerWorker, score_samples


def test_a_scorer_by_path_by_module_and_by_name(monkeypatch):
    monkeypatch.setattr(images.registry.SCORERS, "_entries", dict(images.registry.SCORERS))
    assert type(build_scorer(f"{FILE}:BrightnessScorer")).__name__ == "BrightnessScorer"
    assert isinstance(build_scorer("image_helpers:BrightnessScorer", {"slow_s": 1}), BrightnessScorer)
    assert register_scorer("brightness")(BrightnessScorer) is BrightnessScorer
    register_scorer("brightness")(BrightnessScorer)
    assert build_scorer("brightness").score([sample(255)]) == [1.0]
    with pytest.raises(ValueError, match="already registered"):
        register_scorer("brightness")(AsyncScorer)


@pytest.mark.parametrize(
    ("factory", "options", "message"),
    [
        ("sharpness", {}, r"'sharpness'.*; available: aesthetic, clip, clip_folder, digits, hpsv2, ocr, remote"),
        ("no.such.module:make", {}, r"no module 'no.such.module'"),
        ("/no/such/file.py:make", {}, "no file"),
        (f"{FILE}:nothing", {}, "has no 'nothing'"),
        (f"{FILE}:not a name", {}, "no import path"),
        (f"{FILE}:BrightnessScorer", {"speed": 1}, "speed=1.*there are log, slow_s"),
        ("aesthetic", {}, "head=None.*must be given"),
        (f"{FILE}:text_image", {"text": "a"}, "has no method `score`"),
    ],
)
def test_what_cannot_be_made_says_why(factory, options, message):
    with pytest.raises(ValueError, match=message):
        build_scorer(factory, options)


@pytest.mark.parametrize(
    "image", [np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8), np.zeros((3, 8, 8), np.uint8), [[1]]]
)
def test_only_uint8_images_of_three_channels(image):
    with pytest.raises(ValueError, match="uint8"):
        images.ImageSample(image, "a cat")


def run_batch(scorer, samples):
    return asyncio.run(score_samples(scorer, samples))


def test_one_bad_sample_costs_only_itself(caplog):
    found = run_batch(BrightnessScorer(), [sample(0), sample(13), sample(255), sample(14)])
    assert [scored.failed for scored in found] == [False, True, False, True]
    assert found[0].value == 0.0 and found[2].value == 1.0 and math.isnan(found[3].value)
    assert "unlucky" in found[1].error and "nan" in found[3].error
    assert "unlucky" in caplog.text


def test_a_scorer_that_is_not_available_is_not_asked_sample_by_sample():
    class Down:
        calls = 0

        def score(self, samples):
            self.calls += 1
            raise ScorerUnavailable("the server is down")

    scorer = Down()
    found = run_batch(scorer, [sample()] * 5)
    assert scorer.calls == 1 and len(found) == 5
    assert all(scored.failed and "the server is down" in scored.error for scored in found)


def test_a_wrong_number_of_scores_fails_the_batch():
    class Short:
        def score(self, samples):
            return [1.0]

    assert all("1 numbers for 2" in scored.error for scored in run_batch(Short(), [sample()] * 2))


def test_a_worker_batches_across_requests(tmp_path):
    log = tmp_path / "log"

    async def main():
        worker = ScorerWorker(BrightnessScorer, {"log": str(log)}, max_batch=8, max_wait_s=0.2)
        return await asyncio.gather(*(worker.score(sample(level)) for level in range(100, 116)))

    found = asyncio.run(main())
    assert [scored.value for scored in found] == pytest.approx([level / 255 for level in range(100, 116)])
    assert {scored.batch_size for scored in found} == {8}
    assert [line.split()[1] for line in log.read_text().splitlines()] == ["8", "8"]


def test_a_worker_takes_an_async_scorer():
    async def main():
        worker = ScorerWorker(AsyncScorer, {}, max_batch=2, max_wait_s=0)
        return await asyncio.gather(*(worker.score(sample(prompt="x" * n)) for n in range(6)))

    assert [scored.value for scored in asyncio.run(main())] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('a sign that says "Open" and "24 h"', "Open 24 h"),
        ("ein Schild „Offen“", "Offen"),
        ("a cup with “Tea” on it", "Tea"),
        ("it's a dog's bone", ""),
        ('an unclosed "quote', ""),
    ],
)
def test_quoted_text(prompt, text):
    assert quoted_text(prompt) == text


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("", "", 0), ("abc", "", 3), ("kitten", "sitting", 3), ("flaw", "lawn", 2), ("same", "same", 0)],
)
def test_edit_distance(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_text_similarity_is_one_minus_the_normalised_distance():
    assert text_similarity("Hello  World", "hello world") == 1.0
    assert text_similarity("", "open") == 0.0
    assert text_similarity("opem", "open") == 0.75
    assert text_similarity("open now", "open") == pytest.approx(4 / 7)


@pytest.fixture(scope="module")
def ocr():
    pytest.importorskip("rapidocr_onnxruntime", reason="the extra `ocr` is not installed")
    return build_scorer("ocr")


def test_ocr_reads_drawn_text(ocr):
    image = text_image("Hello World")
    prompts = ['a sign that says "Hello World"', 'a sign that says "Hello Word"', 'a sign that says "Goodbye"']
    scores = ocr.score([images.ImageSample(image, prompt) for prompt in prompts])
    assert scores[0] == 1.0
    assert scores[1] == pytest.approx(0.9)
    assert scores[2] < 0.4
    assert ocr.score([images.ImageSample(image, 'says "Goodbye"', ground_truth="HELLO WORLD")]) == [1.0]


def test_ocr_of_an_empty_image_is_zero_and_of_an_unquoted_prompt_a_failure(ocr):
    assert ocr.score([sample(255, 'the word "cat"', size=(64, 64))]) == [0.0]
    found = run_batch(ocr, [sample(255, 'the word "cat"', size=(64, 64)), sample(255, "a cat", size=(64, 64))])
    assert [scored.failed for scored in found] == [False, True]
    assert "no text to be read" in found[1].error


@pytest.fixture(scope="module")
def digits_folders(tmp_path_factory):
    """A classifier and a CLIP with random weights, laid out as examples/digits makes them."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    scorers = pytest.importorskip("maskgrpo_plugin.models.image_scorers")
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    labels = {n: str(n) for n in range(10)}
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=labels, num_labels=10
    )
    ResNetForImageClassification(config).eval().save_pretrained(folder)
    half = (0.5, 0.5, 0.5)
    scorers.Preprocessing(32, 32, False, half, half).save(folder, "ConvNextImageProcessor")
    return folder


def test_digits_is_the_probability_of_the_asked_digit(digits_folders):
    scorer = build_scorer("digits", {"folder": str(digits_folders), "device": "cpu"})
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    scores = scorer.score([images.ImageSample(pixels, "a digit", truth) for truth in [*range(9), "9"]])
    assert sum(scores) == pytest.approx(1, abs=1e-5) and len(set(scores)) > 1

    from torch import tensor
    from torch.nn.functional import interpolate
    from transformers import AutoModelForImageClassification

    model = AutoModelForImageClassification.from_pretrained(digits_folders).eval()
    inputs = tensor(pixels).permute(2, 0, 1)[None].float() / 255
    inputs = interpolate(inputs, (32, 32), mode="bicubic", antialias=True).clamp(0, 1) * 2 - 1
    assert scores == pytest.approx(model(pixel_values=inputs).logits.softmax(-1)[0].tolist(), abs=1e-4)
    with pytest.raises(ValueError, match="'ten' is no label"):
        scorer.score([images.ImageSample(pixels, "a digit", "ten")])


@pytest.mark.parametrize("kind", ["digits", "clip_folder"])
def test_a_folder_without_a_model_is_refused(kind, tmp_path):
    with pytest.raises(OptionError, match=r"folder=.*config\.json"):
        images.get_scorer(kind).check({"folder": str(tmp_path)})
