"""Rows that join a running batch: decoded as if alone, in a canvas as wide as it needs to be."""

import pytest
import torch

from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.diffusion.samplers.blocks.quotas import reveal_quota
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM

MASK, END = 38, 39
PROMPTS = [[3, 4, 5], [6, 7, 8, 9, 10, 11, 12], [13], [14, 15, 16, 17], [3, 4, 5]]
LENGTH = 12


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(1)
    config = LLaDAConfig(
        d_model=32, n_layers=3, n_heads=4, mlp_hidden_size=64, vocab_size=40, mask_token_id=MASK, init_std=0.3
    )
    return LLaDAModelLM(config).eval()


def sampler(**options):
    options = {"steps": 6, "response_length": LENGTH, "block_length": 4, "stop_token_ids": (END, 20, 21)} | options
    return build_sampler("semi_autoregressive", **options)


def noise(row):
    return torch.Generator().manual_seed(100 + row)


def canvas(rows):
    """Left-padded prompts of these rows with their masks, and the attention mask."""
    width = max(len(PROMPTS[row]) for row in rows)
    tokens = torch.zeros(len(rows), width + LENGTH, dtype=torch.int64)
    mask = torch.zeros_like(tokens)
    for n, row in enumerate(rows):
        tokens[n, width - len(PROMPTS[row]) :] = torch.tensor(PROMPTS[row] + [MASK] * LENGTH)
        mask[n, width - len(PROMPTS[row]) :] = 1
    return tokens, None if bool(mask.all()) else mask


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 1.0},
        {"temperature": 1.0, "cfg_scale": 0.5},
        {"ordering": "random"},
        {"parallel": "threshold", "threshold": 0.4},
    ],
)
def test_a_row_that_joins_late_is_decoded_as_if_alone(model, options):
    def decode(one):
        return [
            one.generate(model, torch.tensor([prompt]), mask_token_id=MASK, generator=[noise(row)])
            for row, prompt in enumerate(PROMPTS)
        ]

    endless = [output.sequences[0, -LENGTH:].tolist() for output in decode(sampler(**options, stop_token_ids=()))]
    one = sampler(**options, stop_token_ids=(endless[1][1], endless[3][5]))
    alone = decode(one)
    decoder = one.decoder(model, mask_token_id=MASK)
    waiting, row_of, finished = [[0, 1], [2], [3, 4]], {}, {}
    while waiting or decoder.running:
        if waiting:
            rows = waiting.pop(0)
            numbers = decoder.join(*canvas(rows), [noise(row) for row in rows])
            row_of |= dict(zip(numbers, rows, strict=True))
        with torch.no_grad():
            decoder.decode_block()
        finished |= {row_of[row.number]: row for row in decoder.leave()}
    assert sorted(finished) == list(range(5)) and not decoder.rows
    for row, expected in enumerate(alone):
        assert finished[row].response.tolist() == expected.sequences[0, -LENGTH:].tolist()
        assert finished[row].reveal_step.tolist() == expected.reveal_step[0, -LENGTH:].tolist()
        assert finished[row].model_calls == int(expected.row_model_calls[0])
    assert decoder.model_calls < sum(output.model_calls for output in alone)
    assert len({output.model_calls for output in alone}) > 1


def test_the_canvas_is_as_wide_as_its_longest_prompt(model):
    one = sampler(stop_token_ids=())
    decoder = one.decoder(model, mask_token_id=MASK)
    widths = []
    for rows in ([1], [3], [0]):
        decoder.join(*canvas(rows), [noise(row) for row in rows])
        decoder.decode_block()
        decoder.leave()
        widths.append(decoder.tokens.shape[1])
    assert widths == [7 + LENGTH, 7 + LENGTH, 4 + LENGTH]
    assert decoder.attention_mask.tolist() == [[1] * (4 + LENGTH), [0] + [1] * (3 + LENGTH)]
    decoder.decode_block()
    decoder.leave()
    assert decoder.tokens.shape == (1, 3 + LENGTH) and decoder.attention_mask is None


@pytest.mark.parametrize(
    ("options", "length"), [({"cache": "prefix"}, LENGTH), ({"cache": "dual"}, LENGTH), ({}, LENGTH - 1)]
)
def test_rows_do_not_join_where_blocks_must_be_in_step(model, options, length):
    decoder = sampler(**options).decoder(model, mask_token_id=MASK, response_length=length)
    tokens, _ = canvas([0])
    decoder.join(tokens[:, : 3 + length], None, [noise(0)])
    with pytest.raises(ValueError, match="join a running batch"):
        decoder.join(tokens[:, : 3 + length], None, [noise(0)])


def test_inputs_that_cannot_work_are_refused(model):
    with pytest.raises(OptionError, match="never emitted"):
        sampler().decoder(model, mask_token_id=END)
    with pytest.raises(OptionError, match="4 blocks"):
        sampler(steps=3).decoder(model, mask_token_id=MASK, response_length=16)
    with pytest.raises(ValueError, match="give one per row"):
        sampler().decoder(model, mask_token_id=MASK).join(canvas([0])[0], None, [])


def test_quotas_share_masks_evenly_over_each_rows_steps():
    quotas = reveal_quota(torch.tensor([7, 4, 0]), torch.tensor([3, 2, 3]))
    assert quotas.tolist() == [[3, 2, 2], [2, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("quota", ["even", "rounded", "dream"])
def test_every_quota_reveals_all_masks_within_its_steps(quota):
    for masked in range(1, 40):
        for steps in range(1, masked + 1):
            (counts,) = reveal_quota(torch.tensor([masked]), torch.tensor([steps]), quota).tolist()
            assert sum(counts) == masked and len(counts) <= steps and min(counts) > 0


def test_the_quotas_of_other_samplers():
    """Dream's: of 8 masks in 4 steps ⌊8·0.24975⌋, ⌊7·0.3328⌋, ⌊5·0.4985⌋ and the rest; dLLM's: round(left / steps)."""
    assert reveal_quota(torch.tensor([8]), torch.tensor([4]), "dream").tolist() == [[1, 2, 2, 3]]
    assert reveal_quota(torch.tensor([4]), torch.tensor([4]), "dream").tolist() == [[1, 1, 2]]
    assert reveal_quota(torch.tensor([8]), torch.tensor([5]), "rounded").tolist() == [[2, 2, 1, 2, 1]]
    assert reveal_quota(torch.tensor([8]), torch.tensor([3]), "rounded").tolist() == [[3, 2, 3]]
