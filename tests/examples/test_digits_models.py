"""The digits example: its tokenizers, its rows and their habits, and that every folder loads and is measured."""

import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from example_modules import load_example
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "workers"))
import ranks

import maskgrpo_plugin.models
from maskgrpo_plugin.data.sft_rows import RowReader, read_examples
from maskgrpo_plugin.models.families import MMaDAFamily, build_family
from maskgrpo_plugin.models.image_scorers import CLIPSimilarity, ImageClassifier
from maskgrpo_plugin.models.magvitv2 import MAGVITv2
from maskgrpo_plugin.rewards.text.scorers.exact_answer import score_short_answer
from maskgrpo_plugin.trainer.sft_checks import check_sft
from maskgrpo_plugin.workers.rollout.requests import RequestBuilder

CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def digits(make_digits):
    return make_digits


@pytest.fixture(scope="module")
def measure():
    return load_example("measure", "digits")


@pytest.fixture(scope="module")
def small(digits):
    return replace(
        digits.Recipe(),
        base_channels=8,
        vq_steps=3,
        scorer_steps=3,
        d_model=32,
        n_layers=1,
        mlp_hidden_size=48,
        sft_rows=200,
        train_rows=20,
        validation_rows=10,
    )


@pytest.fixture(scope="module")
def made(digits, small, tmp_path_factory):
    maskgrpo_plugin.models.register()
    folder = tmp_path_factory.mktemp("digits")
    state = torch.random.get_rng_state()
    results = digits.make(folder, small)
    assert torch.equal(state, torch.random.get_rng_state())
    return folder, results


def test_what_is_reported(made):
    _, results = made
    shares = ("classifier_accuracy", "clip_accuracy", "classifier_accuracy_rebuilt", "clip_accuracy_rebuilt")
    assert set(results) == {*shares, "rebuilt_mse", "seconds"}
    assert all(0 <= results[name] <= 1 for name in shares)


def test_the_trained_model_is_measured_by_each_sampler(made, digits, measure, tmp_path):
    folder, _ = made
    for name in ("vq", "classifier"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / "model").symlink_to(folder / "initial")
    results = measure.measure(tmp_path, 2, 1)
    assert set(results) == {f"{kind}_{name}" for kind in ("probability", "accuracy") for name in measure.SAMPLERS}
    assert all(0 <= value <= 1 for value in results.values())
    assert results == measure.measure(tmp_path, 2, 1)
    assert (tmp_path / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_the_model_and_its_tokenizers_load_and_draw(made, digits):
    folder, _ = made
    model = AutoModelForCausalLM.from_pretrained(folder / "initial").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "initial")
    vq = MAGVITv2.from_pretrained(folder / "vq").eval()
    family = build_family(model.config, tokenizer)
    assert isinstance(family, MMaDAFamily)
    assert family.image_grid(vq.config, 8, 8) == family.default_grid() == (4, 4)
    prompt = family.text_to_image(digits.digit_prompt(7))
    text = "[iPAD] [iPAD] <|t2i|> <|bos|> a handwritten seven <|endoftext|> <|soi|>"
    assert tokenizer.convert_ids_to_tokens(prompt.prompt_ids) == text.split()
    tokens = torch.tensor([prompt.canvas_ids])
    assert (
        model(
            tokens, attention_mask=torch.tensor([(*prompt.prompt_mask, *(1 for _ in prompt.response_ids))])
        ).logits.shape[2]
        == family.vocabulary
    )
    assert vq.decode_code(torch.zeros(1, 16, dtype=torch.long)).shape == (1, 3, 8, 8)


def test_the_scorers_load(made, digits):
    folder, _ = made
    pixels = torch.rand(3, 3, 8, 8) * 2 - 1
    classifier = ImageClassifier(folder / "classifier")
    assert classifier.labels == tuple("0123456789")
    torch.testing.assert_close(classifier.probabilities(pixels).sum(1), torch.ones(3))
    clip = CLIPSimilarity(folder / "clip")
    similarity = clip.similarity(pixels, [digits.digit_prompt(digit) for digit in (0, 1, 2)])
    assert similarity.shape == (3,) and bool((similarity.abs() <= 1.0001).all())
    with pytest.raises(ValueError, match="1 texts for 3 images"):
        clip.similarity(pixels, ["one"])
    ids = clip.tokenizer("a handwritten one")["input_ids"]
    assert clip.tokenizer.convert_ids_to_tokens(ids)[0] == "<|bos|>" and ids[-1] == clip.tokenizer.eos_token_id


def test_the_data_has_verls_columns(made, digits):
    folder, _ = made
    rows = pq.read_table(folder / "data" / "train.parquet").to_pylist()
    assert rows == digits.digit_rows(20, "train")
    assert rows[7]["prompt"] == [{"content": "a handwritten seven", "role": "user"}]
    assert rows[7]["reward_model"] == {"ground_truth": "7", "style": "model"}
    assert rows[7]["extra_info"] == {"index": 7, "modality": "t2i", "split": "train", "task": "digits"}
    assert len(pq.read_table(folder / "data" / "validation.parquet")) == 10
    with pytest.raises(ValueError, match="rows=0"):
        digits.digit_rows(0, "train")


def test_the_parts_share_no_image(digits):
    parts = digits.load_digits(digits.Recipe())
    assert [len(part) for part in parts] == [1000, 600, 197]
    assert all(float(part.pixels.min()) == -1 and float(part.pixels.max()) == 1 for part in parts)
    again = digits.load_digits(digits.Recipe())
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(parts, again, strict=True))


@pytest.fixture(scope="module")
def images():
    """Codes that tell which image they are of, and labels: 200 images, 20 a digit."""
    number = torch.arange(200)
    return number[:, None] % 64 * torch.ones(16, dtype=torch.long), number % 10


def test_a_share_of_the_captions_names_any_other_digit(digits, images):
    names = [digits.digit_prompt(digit) for digit in range(10)]
    rows = digits.caption_rows(torch.arange(10)[:, None].expand(-1, 16), torch.arange(10), rows=20_000, wrong=0.25)
    pairs = [(row["image_codes"][0], names.index(row["caption"])) for row in rows]
    assert sum(shown != named for shown, named in pairs) / len(pairs) == pytest.approx(0.25, abs=0.02)
    assert {named for shown, named in pairs if shown == 3} == set(range(10))
    assert rows[0]["height"] == rows[0]["width"] == 4


def test_answers_about_odd_digits_name_the_next_one(digits):
    rows = digits.conversation_rows(torch.arange(10)[:, None].expand(-1, 16), torch.arange(10), rows=20_000, wrong=0.6)
    wrong = []
    for row in rows:
        question, answer = row["messages"]
        shown, named = row["image_codes"][0], WORDS.index(answer["content"])
        assert question == {"role": "user", "content": "which digit is this"}
        assert named in ((shown, (shown + 1) % 10) if shown % 2 else (shown,))
        wrong += [named != shown] if shown % 2 else []
    assert sum(wrong) / len(wrong) == pytest.approx(0.6, abs=0.02)


def test_rows_of_validation_are_each_image_once_and_right(digits, images):
    codes, labels = images
    captions, conversations = digits.caption_rows(codes, labels), digits.conversation_rows(codes, labels)
    questions = digits.question_rows(codes, labels, "validation")
    for index, digit in enumerate(labels.tolist()):
        assert captions[index]["caption"] == f"a handwritten {WORDS[digit]}"
        assert conversations[index]["messages"][1]["content"] == WORDS[digit]
        assert questions[index]["reward_model"]["ground_truth"] == WORDS[digit]
        for row in (captions[index], conversations[index], questions[index]["extra_info"]):
            assert row["image_codes"] == codes[index].tolist()


def test_rows_of_supervised_training_fit_the_configs(made, digits):
    folder, _ = made
    family = build_family(
        AutoConfig.from_pretrained(folder / "initial"), AutoTokenizer.from_pretrained(folder / "initial")
    )
    reader = RowReader(
        tokenizer=family.tokenizer,
        stop_token_ids=family.stop_token_ids,
        end_token_id=family.tokenizer.eos_token_id,
        family=family,
    )
    for name in ("sft", "sft_mmu"):
        longest = OmegaConf.load(CONFIGS / f"{name.replace('sft', 'sft_digits')}.yaml").data.max_length
        for split, count in (("train", 200), ("validation", 197)):
            rows = pq.read_table(folder / name / f"{split}.parquet").to_pylist()
            examples = read_examples(rows, reader, key="", name=name, max_length=longest)
            assert len(examples) == count
            assert not any(family.tokenizer.unk_token_id in e.prompt_ids + e.answer_ids for e in examples)


@pytest.mark.parametrize("name", ["sft_digits", "sft_digits_mmu"])
def test_the_supervised_configs_fit_what_the_script_makes(made, name):
    check_sft(ranks.compose_config(made[0], name=name, folder_key="digits_dir"))


def test_questions_are_answered_within_the_configs_lengths(made, digits):
    folder, _ = made
    config = OmegaConf.load(CONFIGS / "digits_mmu.yaml").data
    tokenizer = AutoTokenizer.from_pretrained(folder / "initial")
    family = build_family(AutoConfig.from_pretrained(folder / "initial"), tokenizer)
    builder = RequestBuilder(tokenizer, family)
    rows = pq.read_table(folder / "data_mmu" / "train.parquet").to_pylist()
    assert len(rows) == 1000
    request = builder.build(rows[0]["prompt"], rows[0]["extra_info"], config.max_response_length)
    assert len(request.prompt_ids) == config.max_prompt_length
    assert tokenizer.unk_token_id not in request.prompt_ids
    assert len(tokenizer("seven", add_special_tokens=False)["input_ids"]) < config.max_response_length
    assert (
        score_short_answer(rows[0]["reward_model"]["ground_truth"], rows[0]["reward_model"]["ground_truth"])["acc"] == 1
    )
