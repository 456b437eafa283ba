"""Frames of a denoising against what the sampler returns, and the pieces of a text against the whole text."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM

from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.generation.recording import Recorder, canvas_after, evenly
from maskgrpo_plugin.token_text import token_pieces

TEXT = "Zwölf naïve cafés, 漢字かな \U0001f9ea\U0001f468\u200d\U0001f469 done\n  two spaces"


@pytest.mark.parametrize("name", ["semi_autoregressive", "emerge", "maskgit"])
def test_frames_are_what_the_sampler_reveals(tiny_run, name):
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model").eval()
    mask = model.config.mask_token_id
    prompts = torch.randint(9, 20, (3, 5), generator=torch.Generator().manual_seed(0))
    canvas = torch.cat([prompts, torch.full((3, 8), mask)], dim=1)
    recorder = Recorder(canvas, 5)
    sampler = build_sampler(name, steps=4, response_length=8, temperature=1.0)
    output = sampler.generate(model, canvas, mask_token_id=mask, on_step=recorder)
    for row, frames in enumerate(recorder.rows):
        assert canvas_after([mask] * 8, frames) == output.sequences[row, 5:].tolist()
        steps = {change.place: frame.step for frame in frames for change in frame.changes}
        assert [steps[place] for place in range(8)] == output.reveal_step[row, 5:].tolist()
        assert all(0 < change.probability <= 1 for frame in frames for change in frame.changes)
        for step in range(4):
            so_far = canvas_after([mask] * 8, [frame for frame in frames if frame.step <= step])
            hidden = [token == mask for token in so_far]
            assert hidden == (output.reveal_step[row, 5:] > step).tolist()


def test_a_token_that_is_replaced_is_a_change_too():
    recorder = Recorder(torch.tensor([[7, 9, 9]]), 1)
    recorder(0, torch.tensor([[7, 1, 9]]), torch.tensor([[0.0, 0.5, 0.0]]))
    recorder(1, torch.tensor([[7, 1, 9]]), torch.zeros(1, 3))
    recorder(2, torch.tensor([[7, 2, 3]]), torch.tensor([[0.0, 0.25, 0.75]]))
    told = [(frame.step, [(c.place, c.token, c.probability) for c in frame.changes]) for frame in recorder.rows[0]]
    assert told == [(0, [(0, 1, 0.5)]), (2, [(0, 2, 0.25), (1, 3, 0.75)])]


@pytest.mark.parametrize(("count", "most"), [(1, 32), (5, 5), (7, 3), (128, 32), (33, 32)])
def test_steps_are_chosen_evenly_with_the_last(count, most):
    chosen = evenly(count, most)
    assert len(chosen) == min(count, most) and chosen[-1] == count - 1
    gaps = [after - before for before, after in zip([-1, *chosen], chosen, strict=False)]
    assert min(gaps) >= 1 and max(gaps) - min(gaps) <= 1


def byte_tokenizer():
    """Tokens of single bytes, as published byte-pair tokenizers have them for rare characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([], trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False))
    return tokenizer


def word_tokenizer():
    """Tokens of words, which the tokenizer's own decoding puts spaces between."""
    vocabulary = {word: n for n, word in enumerate(sorted(set(TEXT.split())))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize("make", [byte_tokenizer, word_tokenizer])
def test_pieces_make_the_whole_text(make):
    tokenizer = make()
    ids = tokenizer.encode(TEXT).ids
    pieces = token_pieces(tokenizer.decode, ids)
    assert len(pieces) == len(ids) and "".join(pieces) == tokenizer.decode(ids)
    assert not any("\ufffd" in piece for piece in pieces)
    for piece in pieces:
        assert len(piece) == 1 or make is word_tokenizer or piece == ""


def test_a_torn_character_at_the_end_is_shown_as_such():
    tokenizer = byte_tokenizer()
    ids = tokenizer.encode("a漢").ids[:-1]
    assert token_pieces(tokenizer.decode, ids) == ["a", "\ufffd", ""]
