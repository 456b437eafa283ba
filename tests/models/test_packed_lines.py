"""Lines of packed rows made by the caller: the numbers of the padded batch, without a step back to it."""

import pytest
import torch

from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM

MASK, VOCABULARY = 39, 40
LENGTHS = [[3, 7, 1, 5], [1], [6], [4, 4, 4], [1, 1, 2, 9]]


class PadsInside(LLaDAModelLM):
    """LLaDA as a class that does not compute lines itself."""

    supports_packing = False


def make_model(kind=LLaDAModelLM, **changes):
    torch.manual_seed(0)
    sizes = {"d_model": 32, "n_heads": 4, "n_kv_heads": 2, "n_layers": 2, "mlp_hidden_size": 48, "init_std": 0.3}
    sizes |= {"vocab_size": VOCABULARY, "embedding_size": VOCABULARY, "mask_token_id": MASK} | changes
    return kind(LLaDAConfig(**sizes))


def make_rows(lengths, seed=1):
    """Tokens and chosen positions of each row; every row has at least one."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(0, MASK, (n,), generator=generator) for n in lengths]
    chosen = [torch.rand(n, generator=generator) < 0.5 for n in lengths]
    for row in chosen:
        row[-1] = True
    return rows, chosen


def pad(rows):
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_packing_from_lengths_is_that_of_the_right_padded_batch(lengths):
    mask = pad([torch.ones(n) for n in lengths])
    expected, got = Packing.of(torch.nn.functional.pad(mask, (0, 1))), Packing.from_lengths(lengths, "cpu")
    assert torch.equal(got.mask, mask.bool())
    assert torch.equal(got.position_ids, expected.position_ids)
    assert torch.equal(got.boundaries, expected.boundaries) and got.boundaries.dtype == torch.int32
    assert (got.longest, got.rows, got.tokens) == (max(lengths), len(lengths), sum(lengths))
    line = torch.arange(2.0 * sum(lengths)).view(1, -1, 2)
    assert torch.equal(got.pack(got.unpack(line)), line)
    assert torch.equal(got.unpack(line)[~mask.bool()], torch.zeros(int((mask == 0).sum()), 2))
    assert got.is_even == (len(set(lengths)) == 1)


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_rows_without_tokens_are_refused(lengths):
    with pytest.raises(ValueError, match="one token or more"):
        Packing.from_lengths(lengths, "cpu")


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("kind", [LLaDAModelLM, PadsInside])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_line_has_the_values_and_gradients_of_the_padded_batch(lengths, kind, attention):
    model = make_model(kind, attn_implementation=attention).train()
    rows, chosen = make_rows(lengths)
    line, packing = torch.cat(rows)[None], Packing.from_lengths(lengths, "cpu")
    marked, targets = torch.cat(chosen), torch.cat(rows)[torch.cat(chosen)]
    calls = [
        (pad(rows), {"attention_mask": pad([torch.ones(n) for n in lengths]), "logits_positions": pad(chosen)}),
        (line, {"packing": packing, "logits_positions": marked[None]}),
        (line, {"packing": packing, "logits_positions": marked.nonzero()[:, 0]}),
    ]
    results = []
    for ids, options in calls:
        model.zero_grad()
        log_probs = model(ids, target_ids=targets, **options).log_probs
        log_probs.square().sum().backward()
        results.append((log_probs.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    for log_probs, gradients in results[1:]:
        torch.testing.assert_close(log_probs, results[0][0], atol=1e-5, rtol=1e-5)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, results[0][1][name], atol=1e-5, rtol=1e-4)


def test_logits_of_a_line_are_those_of_its_rows():
    model, lengths = make_model().eval(), [3, 7, 1, 5]
    rows, _ = make_rows(lengths)
    packing = Packing.from_lengths(lengths, "cpu")
    places = torch.tensor([2, 3, 10, 15])
    with torch.no_grad():
        alone = torch.cat([model(row[None]).logits[0] for row in rows])
        whole = model(torch.cat(rows)[None], packing=packing)
        some = model(torch.cat(rows)[None], packing=packing, logits_positions=places, vocab_slice=(5, 12))
        embedded = model(inputs_embeds=model.get_input_embeddings()(torch.cat(rows))[None], packing=packing).logits
    torch.testing.assert_close(whole.logits[0], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(embedded[0], alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(some.logits, alone[places, 5:12], atol=1e-5, rtol=0)
    assert whole.hidden_states.shape == (1, 16, 32)


def test_guidance_takes_the_second_half_of_the_line():
    """Rows whose prompts differ in length; the same number of places in each half."""
    model, scale = make_model().eval(), 0.7
    lengths = [4, 6, 5, 3]
    rows, _ = make_rows(lengths)
    last_two = [torch.tensor([n - 2, n - 1]) for n in lengths]
    starts = [0, 4, 10, 15]
    places = torch.cat([start + row for start, row in zip(starts, last_two, strict=True)])
    targets = torch.tensor([30, 31, 3, 4])
    with torch.no_grad():
        got = model(
            torch.cat(rows)[None],
            packing=Packing.from_lengths(lengths, "cpu"),
            logits_positions=places,
            target_ids=targets,
            guidance_scale=scale,
            vocab_slice=(25, 39),
        ).log_probs
        alone = [model(row[None]).logits[0, columns] for row, columns in zip(rows, last_two, strict=True)]
    guided = (1 + scale) * torch.cat(alone[:2]) - scale * torch.cat(alone[2:])
    image = guided[:2, 25:39].log_softmax(-1)[[0, 1], targets[:2] - 25]
    text = guided[2:].log_softmax(-1)[[0, 1], targets[2:]]
    torch.testing.assert_close(got, torch.cat([image, text]), atol=1e-5, rtol=0)


def test_no_hidden_state_of_a_line_is_padded_between_layers():
    model, lengths = make_model().eval(), [3, 7, 1]
    rows, _ = make_rows(lengths)
    seen = []
    for block in model.model.transformer["blocks"]:
        block.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape[:2])))
    model(torch.cat(rows)[None], packing=Packing.from_lengths(lengths, "cpu"), logits_positions=torch.tensor([2, 10]))
    assert seen == [(1, 11), (1, 11)]


def test_columns_of_rows_are_refused_for_a_line():
    model, lengths = make_model().eval(), [3, 7]
    with pytest.raises(ValueError, match="places in it"):
        model(
            torch.zeros(1, 10, dtype=torch.long),
            packing=Packing.from_lengths(lengths, "cpu"),
            logits_positions=torch.tensor([[1], [2]]),
        )


def test_bfloat16_at_the_width_of_8b_runs_on_a_line():
    model = make_model(d_model=4096, n_heads=32, n_kv_heads=32, n_layers=1, mlp_hidden_size=12288, init_std=0.02).to(
        torch.bfloat16
    )
    lengths = [5, 1, 3]
    rows, _ = make_rows(lengths)
    packing, places = Packing.from_lengths(lengths, "cpu"), torch.tensor([4, 5, 7])
    log_probs = model(
        torch.cat(rows)[None], packing=packing, logits_positions=places, target_ids=torch.tensor([1, 2, 3])
    ).log_probs
    log_probs.sum().backward()
    mask = pad([torch.ones(n) for n in lengths])
    padded = model(pad(rows), attention_mask=mask).logits[[0, 1, 2], [4, 0, 1]].float().log_softmax(-1)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, padded[[0, 1, 2], [1, 2, 3]], atol=0.05, rtol=0)
