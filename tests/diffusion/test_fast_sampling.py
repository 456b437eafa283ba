"""What makes semi-autoregressive sampling fast: shared first steps, block caches, parallel decoding, drawing tokens."""

import itertools

import pytest
import torch

from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.diffusion.samplers.blocks.parallel import RULES, Threshold, register_rule
from maskgrpo_plugin.diffusion.samplers.noise import draw_categories
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM

MASK, VOCAB = 30, 32


def make_model(layers):
    config = LLaDAConfig(
        d_model=32,
        n_layers=layers,
        n_heads=4,
        n_kv_heads=2,
        mlp_hidden_size=64,
        vocab_size=VOCAB,
        embedding_size=VOCAB,
        mask_token_id=MASK,
        eos_token_id=31,
        pad_token_id=31,
        max_sequence_length=64,
        init_std=0.5,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LLaDAModelLM(config).eval()


class Counting:
    """A model that remembers the shape of each of its inputs."""

    supports_logits_positions = supports_block_cache = True

    def __init__(self, model):
        self.model, self.shapes = model, []

    def __call__(self, input_ids, **options):
        self.shapes.append(tuple(input_ids.shape))
        return self.model(input_ids, **options)


def text(**options):
    return build_sampler(
        "semi_autoregressive", **({"steps": 12, "response_length": 12, "block_length": 4, "temperature": 0.0} | options)
    )


def padded_prompts():
    ids = torch.randint(0, MASK, (3, 6), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    return ids, mask


# ---- drawing


def test_drawn_tokens_invert_the_distribution_function():
    probabilities = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    uniform = torch.tensor([0.0, 0.2499, 0.2501, 0.7499, 0.7501, 1 - 2**-53], dtype=torch.float64)
    drawn = draw_categories(probabilities.log().expand(6, -1), 1.0, uniform)
    assert drawn.tolist() == [1, 1, 3, 3, 4, 4]


def test_a_large_vocabulary_is_drawn_by_its_probabilities():
    logits = torch.zeros(1, 120_000)
    logits[:, :5] = torch.log(torch.tensor([60_000.0, 30_000.0, 10_000.0, 10_000.0, 1.0]))
    uniform = torch.rand(4_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    drawn = torch.cat([draw_categories(logits.expand(500, -1), 1.0, part) for part in uniform.split(500)])
    total = 110_001 + 119_995
    for token, weight in enumerate((60_000, 30_000, 10_000, 10_000)):
        share, expected = (drawn == token).double().mean().item(), weight / total
        assert abs(share - expected) < 4 * (expected * (1 - expected) / 4_000) ** 0.5
    assert (drawn >= 5).double().mean().item() == pytest.approx(119_995 / total, abs=0.03)


# ---- a group's first step


def test_equal_rows_share_their_first_pass():
    ids, mask = padded_prompts()
    ids, mask = ids.repeat_interleave(2, 0), mask.repeat_interleave(2, 0)
    model = Counting(make_model(2))
    generators = [torch.Generator().manual_seed(n) for n in range(6)]
    together = text(temperature=1.0).generate(model, ids, mask, mask_token_id=MASK, generator=generators)
    assert model.shapes == [(3, 18)] + [(6, 18)] * 11
    for row in range(6):
        own = torch.Generator().manual_seed(row)
        alone = text(temperature=1.0).generate(
            model.model, ids[row : row + 1], mask[row : row + 1], mask_token_id=MASK, generator=own
        )
        assert torch.equal(alone.sequences[0], together.sequences[row])
    assert not torch.equal(together.sequences[0], together.sequences[1])


# ---- block caches


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.0])
def test_with_one_layer_a_cache_is_exact(cache, cfg_scale):
    # keys and values of a single layer depend on the tokens alone, and those outside the block stay
    ids, mask = padded_prompts()
    model = Counting(make_model(1))
    exact = text(cfg_scale=cfg_scale).generate(model, ids, mask, mask_token_id=MASK)
    model.shapes.clear()
    cached = text(cfg_scale=cfg_scale, cache=cache).generate(model, ids, mask, mask_token_id=MASK)
    assert torch.equal(cached.sequences, exact.sequences)
    rows = 3 if cfg_scale == 0 else 6
    widths = {"prefix": [12, 8, 4], "dual": [4, 4, 4]}[cache]
    assert model.shapes == [(rows, width) for window in widths for width in (18, window, window, window)]


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_window_attends_to_what_the_cache_knows(cache):
    model = make_model(2)
    ids, mask = padded_prompts()
    sampled = text(cache=cache, steps=6).generate(model, ids, mask, mask_token_id=MASK)
    canvas = torch.cat([ids, torch.full((3, 12), MASK)], dim=1)
    attended = torch.cat([mask, torch.ones(3, 12, dtype=mask.dtype)], dim=1)
    plain = {
        "attention_mask": attended.bool()[:, None, None, :].expand(-1, 1, 18, -1),
        "position_ids": (attended.cumsum(-1) - 1).clamp(min=0),
    }
    first = model.model.transformer["blocks"][0]

    def hidden_after_first_layer(tokens):
        kept = []
        hook = first.register_forward_hook(lambda *args: kept.append(args[2]))
        model(tokens, **plain)
        hook.remove()
        return kept[0]

    with torch.no_grad():
        for low in (6, 10, 14):
            high = 18 if cache == "prefix" else low + 4
            start = hidden_after_first_layer(canvas)
            for _ in range(2):
                # the second layer sees the window as it is now, and the rest as it was at the start of the block
                mixed = start.clone()
                mixed[:, low:high] = hidden_after_first_layer(canvas)[:, low:high]
                hook = first.register_forward_hook(lambda *args, mixed=mixed: mixed)
                logits = model(canvas, **plain).logits
                hook.remove()
                logits[..., MASK] = -torch.inf
                confidence, guess = logits.softmax(-1).max(-1)
                confidence = confidence.masked_fill(canvas != MASK, -1.0)[:, low : low + 4]
                chosen = confidence.topk(2).indices + low
                canvas.scatter_(1, chosen, guess.gather(1, chosen))
    assert torch.equal(sampled.sequences, canvas)


def test_a_cache_needs_a_model_that_takes_one():
    class Plain:
        def __call__(self, input_ids, attention_mask=None):
            raise AssertionError

    with pytest.raises(ValueError, match="cache='dual'"):
        text(cache="dual").generate(Plain(), torch.zeros(1, 2), mask_token_id=MASK)


# ---- parallel decoding


def brute_force(rule, confidence, columns, threshold, factor, low):
    """What the rules say, written for one row of lists."""
    if rule == "factor":
        order = sorted(range(len(columns)), key=lambda n: -confidence[n])
        allowed = [n for n in range(1, len(order) + 1) if (n + 1) * (1 - confidence[order[n - 1]]) < factor]
        return {columns[order[n]] for n in range(max(allowed, default=0))}
    found = {c for c, p in zip(columns, confidence, strict=True) if p >= threshold}
    if rule == "hierarchical":
        pairs = zip(columns, confidence, strict=True)
        for _, run in itertools.groupby(enumerate(pairs), key=lambda item: item[1][0] - item[0]):
            column, best = max((pair for _, pair in run), key=lambda pair: pair[1])
            if best >= low:
                found.add(column)
    return found


@pytest.mark.parametrize(
    ("rule", "threshold", "low"),
    [
        ("threshold", 0.8, None),
        ("factor", 0.8, None),
        ("hierarchical", 0.8, None),
        ("hierarchical", 0.9, 0.4),  # of dInfer's tests
        ("hierarchical", 0.9, 0.6),  # of its server
    ],
)
def test_rules_reveal_what_they_say(rule, threshold, low):
    options = text(parallel=rule, threshold=threshold, low_threshold=low, factor=1.1)
    draw = torch.Generator().manual_seed(5)
    revealed = 0
    for _ in range(200):
        rows = [sorted(torch.randperm(12, generator=draw)[:count].tolist()) for count in (2, 7, 5)]
        confidence = torch.rand(3, 7, generator=draw) ** 0.4
        columns, valid = torch.full((3, 7), 11), torch.zeros(3, 7, dtype=torch.bool)
        for n, row in enumerate(rows):
            columns[n, : len(row)] = torch.tensor(row)
            valid[n, : len(row)] = True
        scores = confidence.masked_fill(~valid, -torch.inf)
        got = RULES[rule](options, 3, 12, scores.device).reveal(scores, columns, valid)
        for n, row in enumerate(rows):
            expected = brute_force(rule, confidence[n, : len(row)].tolist(), row, threshold, 1.1, low or threshold / 2)
            assert set(columns[n][got[n]].tolist()) == expected
            revealed += len(expected)
    assert 200 < revealed < 2800


def test_a_lower_low_threshold_reveals_more_runs():
    ids, model = padded_prompts()[0], make_model(2)
    calls = {
        low: int(
            text(block_length=12, parallel="hierarchical", low_threshold=low)
            .generate(model, ids, mask_token_id=MASK)
            .row_model_calls.sum()
        )
        for low in (0.0, 0.4, 0.9)
    }
    assert calls[0.0] < calls[0.4] < calls[0.9]


def test_a_fifth_rule_is_a_class_of_its_own():
    @register_rule("certain_twice")
    class CertainTwice(Threshold):
        def __init__(self, options, rows, width, device):
            super().__init__(options, rows, width, device)
            self.before = torch.zeros(rows, width, dtype=torch.bool)

        def keep(self, rows):
            self.before = self.before[rows]

        def reveal(self, confidence, places, valid):
            certain = super().reveal(confidence, places, valid)
            again = certain & self.before.gather(1, places)
            self.before = torch.zeros_like(self.before).scatter(1, places.where(valid, 0), certain)
            return again

    try:
        ids, model = padded_prompts()[0], make_model(2)
        calls = {
            rule: int(
                text(block_length=12, parallel=rule, threshold=0.3)
                .generate(model, ids, mask_token_id=MASK)
                .row_model_calls.sum()
            )
            for rule in ("none", "certain_twice", "threshold")
        }
    finally:
        del RULES["certain_twice"]
    assert calls["threshold"] < calls["certain_twice"] < calls["none"]


@pytest.mark.parametrize("rule", ["threshold", "factor", "hierarchical", "credit"])
def test_parallel_decoding_saves_steps_and_never_takes_more(rule):
    ids, mask = padded_prompts()
    model = make_model(2)
    exact = text().generate(model, ids, mask, mask_token_id=MASK)
    parallel = text(parallel=rule, threshold=0.3, factor=1.9).generate(model, ids, mask, mask_token_id=MASK)
    assert int(parallel.row_model_calls.sum()) < int(exact.row_model_calls.sum()) - 3
    assert (parallel.row_model_calls <= exact.row_model_calls).all()
    assert (parallel.sequences != MASK).all()
    alone = text(parallel=rule, threshold=0.3, factor=1.9).generate(model, ids[1:2], mask[1:2], mask_token_id=MASK)
    assert torch.equal(alone.sequences[0], parallel.sequences[1])
    assert int(alone.row_model_calls[0]) == int(parallel.row_model_calls[1])


@pytest.mark.parametrize("rule", ["threshold", "factor", "hierarchical", "credit"])
@pytest.mark.parametrize("cache", ["none", "dual"])
def test_parallel_decoding_leaves_revealed_tokens_alone(rule, cache):
    # several tokens a step: a row may have fewer left than the step's number while another has more
    model, unequal = make_model(2), 0
    sampler = text(steps=6, block_length=6, parallel=rule, threshold=0.5, factor=1.2, cache=cache)
    for seed in range(12):
        ids = torch.randint(0, MASK, (4, 5), generator=torch.Generator().manual_seed(seed))
        seen = []
        output = sampler.generate(
            model, ids, mask_token_id=MASK, on_step=lambda _, tokens, __, seen=seen: seen.append(tokens)
        )
        unequal += output.row_model_calls.unique().numel() > 1
        for before, after in itertools.pairwise(seen):
            visible = before != MASK
            assert torch.equal(before[visible], after[visible])
        assert (seen[-1] != MASK).all() and torch.equal(seen[-1], output.sequences)
    assert unequal > 3


def test_credit_equals_a_credit_of_the_whole_vocabulary():
    """The published rule with a dense matrix of credits, a row at a time, at least one token a step."""
    model, threshold, block = make_model(2), 0.75, 6
    earlier, changed = 0, 0
    for seed in range(8):
        ids = torch.randint(0, MASK, (3, 5), generator=torch.Generator().manual_seed(seed))
        got = text(block_length=block, parallel="credit", threshold=threshold).generate(model, ids, mask_token_id=MASK)
        plain = text(block_length=block, parallel="threshold", threshold=threshold)
        plain = plain.generate(model, ids, mask_token_id=MASK)
        for row in range(3):
            canvas = torch.cat([ids[row], torch.full((12,), MASK)])
            calls = 0
            for low in (5, 5 + block):
                credit = torch.zeros(17, VOCAB)
                while (canvas[low : low + block] == MASK).any():
                    with torch.no_grad():
                        logits = model(canvas[None]).logits[0]
                    logits[:, MASK] = -torch.inf
                    top, best = logits.softmax(-1).max(-1)
                    credit *= 0.8
                    credit[torch.arange(17), best] += top**0.2
                    confidence, chosen = (logits + 0.7 * torch.log(1 + credit)).softmax(-1).max(-1)
                    hidden = (canvas == MASK) & (torch.arange(17) >= low) & (torch.arange(17) < low + block)
                    confidence[~hidden] = -1.0
                    revealed = confidence >= threshold
                    revealed[confidence.argmax()] = True
                    canvas[revealed] = chosen[revealed]
                    calls += 1
            assert torch.equal(got.sequences[row], canvas)
            assert int(got.row_model_calls[row]) == calls
        earlier += int(plain.row_model_calls.sum()) - int(got.row_model_calls.sum())
        changed += int((plain.sequences != got.sequences).any())
    assert earlier > 0 and changed > 0


def test_nothing_is_certain_enough_for_a_threshold_of_one():
    ids, mask = padded_prompts()
    model = make_model(2)
    exact = text().generate(model, ids, mask, mask_token_id=MASK)
    strict = text(parallel="threshold", threshold=1.0).generate(model, ids, mask, mask_token_id=MASK)
    assert torch.equal(strict.sequences, exact.sequences)
    assert torch.equal(strict.reveal_step, exact.reveal_step)


def test_with_a_cache_rows_may_finish_a_block_at_different_steps():
    ids, mask = padded_prompts()
    options = {"parallel": "threshold", "threshold": 0.3, "cache": "dual", "cfg_scale": 0.5}
    model = make_model(1)
    cached = text(**options).generate(model, ids, mask, mask_token_id=MASK)
    without = text(**(options | {"cache": "none"})).generate(model, ids, mask, mask_token_id=MASK)
    assert torch.equal(cached.sequences, without.sequences)
    assert cached.row_model_calls.unique().numel() > 1


@pytest.mark.parametrize(
    "options",
    [
        {"cache": "all"},
        {"parallel": "certain"},
        {"parallel": "credit", "ordering": "margin"},
        {"threshold": 0.0},
        {"threshold": 1.5},
        {"factor": 0.0},
    ],
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        text(**options)
