"""Flex attention of the noisy and the clean copy: its mask entry for entry, and the numbers of SDPA."""

from random import Random

import pytest
import torch
from family_models import BIDIRECTIONAL, FAMILIES, MASK, make_model
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AutoConfig, AutoModelForCausalLM

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM
from maskgrpo_plugin.models.tiles import TILE, tile_mask
from maskgrpo_plugin.models.two_copies import TwoCopies

BLOCKS = sorted(set(FAMILIES) - set(BIDIRECTIONAL))


def dense(block_mask):
    """What a mask of tiles says of each entry, (T, T) bool, without regard to its tiles."""
    tokens = block_mask.seq_lengths[0]
    place = torch.arange(tokens)
    return block_mask.mask_mod(torch.tensor(0), torch.tensor(0), place[:, None], place)


def by_rule(lengths, block):
    """What attends to what in the line of both copies, token by token from the rule."""
    tokens = [
        (row, noisy, place // block)
        for row, length in enumerate(lengths)
        for noisy in (True, False)
        for place in range(length)
    ]
    found = torch.zeros(len(tokens), len(tokens), dtype=torch.bool)
    for query, (row, noisy, own) in enumerate(tokens):
        for key, (other, to_noisy, of) in enumerate(tokens):
            clean = not to_noisy and (of < own if noisy else of <= own)
            found[query, key] = row == other and (clean or (noisy and to_noisy and of == own))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_every_entry_is_that_of_the_rule(seed):
    """Rows of any length with padding on either side, blocks of any length."""
    draw = Random(seed)
    lengths, block = [draw.randint(1, 30) for _ in range(draw.randint(1, 4))], draw.choice([1, 4, draw.randint(1, 35)])
    mask = torch.zeros(len(lengths), max(lengths) + 5, dtype=torch.int64)
    for row, length in enumerate(lengths):
        first = draw.randint(0, 5)
        mask[row, first : first + length] = 1
    copies = TwoCopies.of(Packing.of(mask), block)
    expected = by_rule(lengths, block)
    assert torch.equal(dense(copies.layout(None, tiled=True).tiles), expected)
    rows = copies.layout(None).attention_mask
    both = torch.block_diag(*(rows[row, 0, : 2 * n, : 2 * n].int() for row, n in enumerate(lengths))).bool()
    assert torch.equal(both, expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("block", [1, 4, 32, 100, 128, 256, 1000])
def test_tiles_are_those_that_torch_finds_in_the_whole_mask(block, seed):
    draw = Random(f"{block} {seed}")
    lengths = [draw.choice([128, draw.randint(1, 400)]) for _ in range(draw.randint(1, 5))]
    found = TwoCopies.of(Packing.from_lengths(lengths, "cpu"), block).layout(None, tiled=True).tiles
    tokens = 2 * sum(lengths)
    expected = create_block_mask(found.mask_mod, None, None, tokens, tokens, device="cpu")
    assert found.shape == expected.shape == (1, 1, tokens, tokens)
    for kind in ("kv", "full_kv", "q", "full_q"):
        counts, places = (getattr(found, f"{kind}_{part}") for part in ("num_blocks", "indices"))
        assert torch.equal(counts, getattr(expected, f"{kind}_num_blocks"))
        assert torch.equal(places, getattr(expected, f"{kind}_indices"))


def test_spans_of_the_example():
    start, stop = torch.tensor([[0, 1, 0]]), torch.tensor([[1, 2, 3]])
    assert dense(tile_mask(start, stop)).int().tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 1]]


def test_a_mask_of_tiles_is_small():
    """Four rows of 2,784 tokens, as `sdar_8b_math` trains them."""
    length, rows = 2784, 4
    block_mask = TwoCopies.of(Packing.from_lengths([length] * rows, "cpu"), 4).layout(None, tiled=True).tiles
    held = sum(part.numel() * part.element_size() for part in block_mask.as_tuple() if isinstance(part, torch.Tensor))
    tiles = -(-2 * length * rows // TILE)
    assert held == 4 * (4 * tiles + 4 * tiles**2)
    assert held < 0.005 * rows * (2 * length) ** 2


def copies_of(device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = [150, 7, 64]
    clean = torch.randint(0, MASK, (1, sum(lengths)), generator=generator)
    hidden = torch.rand(clean.shape, generator=generator) < 0.5
    noisy = clean.masked_fill(hidden, MASK)
    given = {"clean_ids": clean, "logits_positions": hidden, "target_ids": clean[hidden]}
    given = {key: value.to(device) for key, value in given.items()}
    return noisy.to(device), given | {"packing": Packing.from_lengths(lengths, device)}


@pytest.mark.parametrize("family", BLOCKS)
def test_log_probabilities_are_those_of_sdpa(family):
    """Without gradients, of which flex attention has none on the CPU."""
    noisy, given = copies_of()
    sizes = {"max_position_embeddings": 256}
    with torch.no_grad():
        sdpa, flex, auto = (
            make_model(family, attention, **sizes)(noisy, **given).log_probs
            for attention in ("sdpa", "flex_attention", "auto")
        )
    torch.testing.assert_close(flex, sdpa, atol=2e-5, rtol=0)
    assert torch.equal(auto, sdpa)


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_auto_is_sdpa_where_attention_is_in_both_directions(name, tmp_path):
    """As a run loads it: the name stands in the config that the folder is read with."""
    sizes = {"d_model": 32, "n_layers": 1, "n_heads": 4, "mlp_hidden_size": 48, "vocab_size": 40, "mask_token_id": MASK}
    model = make_model("dream") if name == "dream" else LLaDAModelLM(LLaDAConfig(**sizes)).eval()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, attn_implementation="auto")
    auto = AutoModelForCausalLM.from_pretrained(tmp_path, config=config).eval()
    ids = torch.arange(12).view(2, 6)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with torch.no_grad():
        assert torch.equal(auto(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


def test_queries_and_keys_follow_the_values_under_automatic_casts():
    noisy, given = copies_of()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        sdpa, flex = (make_model("sdar", name)(noisy, **given).log_probs for name in ("sdpa", "flex_attention"))
    torch.testing.assert_close(flex, sdpa, atol=0.1, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="flex attention has a backward pass on a GPU alone")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("family", BLOCKS)
def test_loss_and_gradients_are_those_of_sdpa(family, checkpointing):
    noisy, given = copies_of("cuda")
    sizes = {"head_dim": 16, "hidden_size": 64, "max_position_embeddings": 256}
    found = {}
    for attention in ("sdpa", "flex_attention", "auto"):
        model = make_model(family, attention, **sizes).cuda().train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        loss = model(noisy, **given).log_probs.mean()
        loss.backward()
        found[attention] = [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for attention in ("flex_attention", "auto"):
        for ours, expected in zip(found[attention], found["sdpa"], strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-3 * expected.abs().max().item(), rtol=1e-3)
