"""The digits example's models: its tokenizer and data, its corpus, and that every folder loads."""

import math
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import maskgrpo_plugin.models
from maskgrpo_plugin.models.families import MMaDAFamily, build_family
from maskgrpo_plugin.models.image_scorers import CLIPSimilarity, ImageClassifier
from maskgrpo_plugin.models.magvitv2 import MAGVITv2


@pytest.fixture(scope="module")
def digits(make_digits):
    return make_digits


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
        max_steps=3,
        images_a_digit=1,
        reported_images_a_digit=2,
        sampling_steps=2,
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
    for name in ("emerge", "maskgit", "emerge_cfg"):
        assert 0 <= results[f"probability_{name}"] <= 1
    assert results["steps"] == 3


def test_the_model_and_its_tokenizers_load_and_draw(made, digits):
    folder, _ = made
    model = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
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


def test_a_contact_sheet_is_written(made):
    assert (made[0] / "samples.png").read_bytes().startswith(b"\x89PNG")


def test_the_parts_share_no_image(digits):
    parts = digits.load_digits(digits.Recipe())
    assert [len(part) for part in parts] == [1000, 600, 197]
    assert all(float(part.pixels.min()) == -1 and float(part.pixels.max()) == 1 for part in parts)
    again = digits.load_digits(digits.Recipe())
    assert all(torch.equal(a.labels, b.labels) for a, b in zip(parts, again, strict=True))


def test_captions_are_wrong_and_empty_as_often_as_the_recipe_says(digits):
    labels = torch.arange(10).repeat(5000)
    recipe = digits.Recipe()
    captions = digits.corpus_captions(labels, recipe, torch.Generator().manual_seed(0))
    assert float((captions == 10).float().mean()) == pytest.approx(recipe.dropped_captions, abs=0.01)
    named = captions < 10
    wrong = float((captions[named] != labels[named]).float().mean())
    assert wrong == pytest.approx(recipe.wrong_captions, abs=0.01)


def test_the_loss_of_a_model_that_knows_nothing_is_log_of_the_codebook(digits, small):
    tokenizer = digits.make_tokenizer()
    vq = MAGVITv2(
        digits.MAGVITv2Config(
            base_channels=8,
            channel_multipliers=(1,),
            encoder_blocks=(1,),
            decoder_blocks=(1,),
            norm_groups=8,
            code_bits=6,
        )
    )
    model = digits.make_model(tokenizer, vq, small)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    family = build_family(model.config, tokenizer)
    prompts = digits.PromptTable.build(family)
    tokens = torch.randint(*family.image.vocab_slice, (5000, 16), generator=torch.Generator().manual_seed(0))
    loss = digits.diffusion_loss(
        model, family, prompts, torch.zeros(5000, dtype=torch.long), tokens, torch.Generator().manual_seed(0)
    )
    assert loss.item() == pytest.approx(math.log(64), rel=0.05)


def test_command_says_when_the_target_is_not_reached(digits, small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(digits, "make", lambda folder, recipe: {"probability_at_stop": 0.5})
    command = ["--output-dir", str(tmp_path), "--max-steps", "5", "--target-probability"]
    assert digits.main([*command, "0.6"]) == 1
    assert "0.6 was not reached in 5 steps" in capsys.readouterr().err
    assert digits.main([*command, "0.5"]) == 0
    with pytest.raises(SystemExit):
        digits.main(["--output-dir", str(tmp_path), "--max-steps", "0"])
