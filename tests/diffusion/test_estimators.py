"""Passes of each estimator: what the model sees, what is scored with which factor, and what becomes of the tail."""

import math

import pytest
import torch

from maskgrpo_plugin.diffusion.estimators import CANVASES, ESTIMATORS, Rows, build_estimator
from maskgrpo_plugin.diffusion.estimators.base import after_first_stop
from maskgrpo_plugin.diffusion.estimators.plan import StepPlan, mask_keys
from maskgrpo_plugin.diffusion.estimators.trajectory import merge_steps, segment_steps
from maskgrpo_plugin.diffusion.levels import mask_levels
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.remasking import remask
from maskgrpo_plugin.errors import OptionError

MASK, STOP, PROMPT, END = 99, 2, 5, 14
NAMES = ESTIMATORS.names()
CANVASES_OF = [
    (name, canvas) for name in NAMES for canvas in CANVASES if name != "sampled_steps" or canvas == "full"
]  # a ratio to the sampler's record is on the sampler's canvas
BY_TOKEN = ("reveal_step", "sampler_log_prob", "sampler_entropy", "sampler_allowed")


def make_rows(count=6, length=20, **changes):
    """Prompts of 5 tokens, an end token at column 14, the last two columns of the first row padding."""
    tokens = torch.randint(10, 50, (count, length), generator=torch.Generator().manual_seed(0))
    tokens[:, END:] = STOP
    column = torch.arange(length).expand(count, -1)
    attended = column < length
    attended[0, 18:] = False
    response = (column >= PROMPT) & attended
    reveal = torch.randint(0, 8, (count, length), generator=torch.Generator().manual_seed(1))
    entropy = torch.rand(count, length, generator=torch.Generator().manual_seed(2))
    fields = {
        "tokens": tokens,
        "response": response,
        "prompt": column < PROMPT,
        "attended": attended,
        "keys": torch.arange(count),
        "mask_token_id": MASK,
        "stop_token_ids": (STOP,),
        "reveal_step": reveal.masked_fill(~response, -1),
        "sampler_log_prob": -entropy,
        "sampler_entropy": entropy,
        "sampler_allowed": torch.full((count, length, 1), -1),
    }
    return Rows(**(fields | changes))


def take(rows, index):
    """Some of the rows, in another order."""
    names = ("tokens", "response", "prompt", "attended", "keys", *BY_TOKEN)
    return Rows(
        **{name: getattr(rows, name)[index] for name in names}, mask_token_id=MASK, stop_token_ids=rows.stop_token_ids
    )


def passes_of(name, rows, update=0, seed=3, step=1, **options):
    return build_estimator(name, **options).passes(rows, seed=seed, step=step, update=update)


def test_the_tail_is_what_follows_the_first_stop():
    tokens = torch.tensor([[5, 2, 6, 2, 7], [5, 6, 7, 8, 9]])
    response = torch.tensor([[0, 1, 1, 1, 1]] * 2).bool()
    assert after_first_stop(tokens, response, [2]).tolist() == [[False, False, True, True, True], [False] * 5]
    assert not after_first_stop(tokens, response, []).any()


# --- what holds for all of them


@pytest.mark.parametrize(("name", "canvas"), CANVASES_OF)
def test_the_tail_is_what_the_canvas_says(name, canvas):
    rows = make_rows()
    estimator = build_estimator(name, canvas=canvas)
    passes = estimator.passes(rows, seed=3, step=1, update=0)
    counted = estimator.counted(rows, passes)
    tail = rows.tail
    assert tail[:, END + 1 :].sum() == tail.sum() > 0
    if canvas == "full":
        assert (counted & tail).any()
    else:
        assert not (counted & tail).any()
    for one in passes:
        shown = one.noisy[tail]
        if canvas == "masked":
            assert (shown == MASK).all()
        elif canvas in ("visible", "trimmed"):
            assert torch.equal(shown, rows.tokens[tail])
    assert torch.equal(estimator.attended(rows), rows.attended & ~tail if canvas == "trimmed" else rows.attended)


@pytest.mark.parametrize(("name", "canvas"), CANVASES_OF)
def test_what_is_scored_is_masked_and_what_is_visible_is_true(name, canvas):
    rows = make_rows()
    for one in passes_of(name, rows, canvas=canvas):
        assert (one.noisy[one.scored] == MASK).all()
        visible = one.noisy != MASK
        assert torch.equal(one.noisy[visible], rows.tokens[visible])
        assert not (one.scored & ~rows.response).any()
        assert (one.weight[one.scored] > 0).all() and not one.weight[~one.scored].any()


@pytest.mark.parametrize("name", NAMES)
def test_passes_do_not_depend_on_the_order_or_split_of_rows(name):
    rows = make_rows()
    whole = passes_of(name, rows, mu=2, update=1)
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    for index in (order, torch.tensor([3])):
        some = passes_of(name, take(rows, index), mu=2, update=1)
        for n, one in enumerate(whole):
            if n >= len(some):
                assert not one.scored[index].any()
                continue
            assert torch.equal(some[n].noisy, one.noisy[index])
            assert torch.equal(some[n].scored, one.scored[index])
            torch.testing.assert_close(some[n].weight, one.weight[index], rtol=0, atol=0)
            assert one.loss_weight is None or torch.equal(some[n].loss_weight, one.loss_weight[index])


@pytest.mark.parametrize("name", NAMES)
def test_padding_in_front_changes_nothing(name):
    rows = make_rows()
    pad = lambda x, value: torch.nn.functional.pad(x, (3, 0), value=value)  # noqa: E731
    padded = Rows(
        tokens=pad(rows.tokens, 0),
        response=pad(rows.response, False),
        prompt=pad(rows.prompt, False),
        attended=pad(rows.attended, False),
        keys=rows.keys,
        mask_token_id=MASK,
        stop_token_ids=rows.stop_token_ids,
        reveal_step=pad(rows.reveal_step, -1),
        sampler_entropy=pad(rows.sampler_entropy, 0),
    )
    for one, other in zip(passes_of(name, rows), passes_of(name, padded), strict=True):
        assert torch.equal(other.noisy[:, 3:], one.noisy)
        assert torch.equal(other.scored[:, 3:], one.scored)


@pytest.mark.parametrize("name", NAMES)
def test_a_separable_estimator_scores_a_token_at_most_once_per_estimate(name):
    estimator = build_estimator(name)
    passes = estimator.passes(make_rows(), seed=3, step=1, update=0)
    of_estimates = torch.stack([one.scored for one in passes]).unflatten(0, (estimator.estimates, -1))
    assert of_estimates.sum(1).max() <= 1 or not estimator.separable


@pytest.mark.parametrize("name", NAMES)
def test_updates_and_steps_draw_other_masks_unless_the_passes_do_not_vary(name):
    rows = make_rows()
    estimator = build_estimator(name, mu=3)

    def canvases(seed, step, update):
        return torch.stack([one.noisy for one in estimator.passes(rows, seed=seed, step=step, update=update)])

    first = canvases(3, 1, 0)
    assert torch.equal(first, canvases(3, 1, 0))
    assert torch.equal(first, canvases(3, 1, 1)) != estimator.varies
    if estimator.varies:
        assert not torch.equal(first, canvases(3, 2, 0))
        assert not torch.equal(first, canvases(4, 1, 0))


@pytest.mark.parametrize("name", NAMES)
def test_rows_without_a_response_score_nothing(name):
    rows = make_rows()
    empty = Rows(**{**rows.__dict__, "response": torch.zeros_like(rows.response)})
    for one in passes_of(name, empty):
        assert not one.scored.any()


@pytest.mark.parametrize("name", [name for name in NAMES if ESTIMATORS[name].score != "bounds"])
def test_fold_is_the_weighted_sum_over_the_passes(name):
    rows = make_rows()
    estimator = build_estimator(name)
    passes = estimator.passes(rows, seed=3, step=1, update=0)
    log_probs = [torch.randn(rows.tokens.shape, dtype=torch.float64) for _ in passes]
    expected = torch.zeros(rows.tokens.shape, dtype=torch.float64)
    for b in range(len(rows.tokens)):
        for n in range(rows.tokens.shape[1]):
            for one, values in zip(passes, log_probs, strict=True):
                if one.scored[b, n]:
                    expected[b, n] += one.weight[b, n] * values[b, n]
    torch.testing.assert_close(estimator.fold(passes, log_probs), expected)


# --- each by itself


def test_maskgrpo_masks_as_remask_does_at_its_levels():
    rows = make_rows()
    for update, level in enumerate(mask_levels(4, 0.6)):
        [one] = passes_of("maskgrpo", rows, update=update, mu=4, gamma=0.6, canvas="visible")
        expected = remask(
            rows.tokens,
            rows.response & ~rows.tail,
            level,
            "ar_like",
            seed=combine_seed(3, 1, update),
            keys=rows.keys,
            mask_token_id=MASK,
        )
        assert torch.equal(one.noisy, expected.noisy)
        assert torch.equal(one.scored, expected.masked)


def test_maskgrpo_weights_an_update_by_its_level():
    estimator = build_estimator("maskgrpo", mu=2, gamma=0.6, time_weighting="inverse_t")
    assert [estimator.loss_weight(u) for u in range(2)] == pytest.approx([1 / 0.8, 1 / 0.999])
    assert build_estimator("maskgrpo").loss_weight(0) == 1.0
    assert [estimator.metrics(u)["mask_ratio"] for u in range(2)] == pytest.approx([0.8, 0.999])


def test_diffu_grpo_masks_the_whole_response_and_prompt_tokens_without_learning_them():
    rows = make_rows(200)
    [one] = passes_of("diffu_grpo", rows, prompt_mask_ratio=0.15)
    assert (one.noisy[rows.response] == MASK).all()
    assert torch.equal(one.scored, rows.response & ~rows.tail)
    share = (one.noisy[rows.prompt] == MASK).double().mean().item()
    assert share == pytest.approx(0.15, abs=4 * math.sqrt(0.15 * 0.85 / 1000))


def test_coupled_covers_every_token_twice_with_its_factors():
    rows = make_rows(500)
    whole, first, second = passes_of("coupled", rows, canvas="full")
    assert torch.equal(whole.scored, rows.response)
    assert torch.equal(first.scored ^ second.scored, rows.response)
    ratio = 0.5 / first.weight.max().item()
    assert 0.2 <= ratio <= 0.8
    assert second.weight.max().item() == pytest.approx(0.5 / (1 - ratio))
    assert whole.weight.max().item() == 0.5
    share = first.scored.sum().item() / rows.response.sum().item()
    assert share == pytest.approx(ratio, abs=4 * math.sqrt(0.25 / 7500))


def test_coupled_draws_one_ratio_per_update_over_its_whole_range():
    rows = make_rows(6)
    weights = [passes_of("coupled", rows, step=step, update=u)[1].weight.max() for step in range(300) for u in range(2)]
    ratios = 0.5 / torch.stack(weights).double()
    assert 0.2 <= ratios.min() < 0.21 and 0.79 < ratios.max() <= 0.8
    assert ratios.mean().item() == pytest.approx(0.5, abs=4 * 0.6 / math.sqrt(12 * 600))


def test_unigrpo_levels_are_one_random_start_and_even_steps():
    estimator = build_estimator("unigrpo", mu=5, low=0.0, high=1.0)
    keys = torch.arange(2000)
    levels = torch.stack([estimator.row_levels(keys, seed=0, step=0, update=u) for u in range(5)])
    torch.testing.assert_close(levels.diff(dim=0), torch.full((4, 2000), 0.2, dtype=torch.float64))
    assert 0 <= levels[0].min() < 0.001 and 0.199 < levels[0].max() <= 0.2
    assert levels.mean().item() == pytest.approx(0.5, abs=4 * 0.2 / math.sqrt(12 * 2000))
    assert len(levels[0].unique()) == 2000


def test_unigrpo_independent_levels_are_uniform_draws():
    estimator = build_estimator("unigrpo", mu=4, low=0.1, high=0.9, levels="independent")
    levels = torch.stack([estimator.row_levels(torch.arange(5000), seed=0, step=0, update=u) for u in range(4)])
    assert levels.min() >= 0.1 and levels.max() <= 0.9
    assert levels.var().item() == pytest.approx(0.8**2 / 12, rel=0.03)
    assert torch.corrcoef(levels).triu(1).abs().max() < 5 / math.sqrt(5000)


def test_unigrpo_masks_each_row_at_its_own_level():
    rows = make_rows(400, stop_token_ids=())
    estimator = build_estimator("unigrpo", mu=2)
    [one] = estimator.passes(rows, seed=0, step=0, update=1)
    levels = estimator.row_levels(rows.keys, seed=0, step=0, update=1)
    share = one.scored.sum(-1).double() / rows.response.sum(-1)
    assert share.mean().item() == pytest.approx(levels.mean().item(), abs=0.03)
    assert torch.corrcoef(torch.stack([share, levels]))[0, 1] > 0.6


def test_merged_steps_are_numbered_by_row():
    steps = torch.tensor([[-1, 5, 0, 5, 2, 9], [-1, 1, 1, 1, 1, -1]])
    maskable = torch.tensor([[0, 1, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]]).bool()
    assert merge_steps(steps, maskable, 1).tolist() == [[-1, 2, 0, 2, 1, -1], [-1, 0, 0, 0, 0, 1]]
    assert merge_steps(steps, maskable, 2).tolist() == [[-1, 1, 0, 1, 0, -1], [-1, 0, 0, 0, 0, 0]]


def test_segments_start_at_equal_shares_of_the_steps():
    steps = torch.arange(8).unsqueeze(0)
    everything = torch.ones(1, 8, dtype=torch.bool)
    assert segment_steps(steps, everything, 4, 8).tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]]
    assert segment_steps(steps, everything, 3, 8).tolist() == [[0, 0, 1, 1, 1, 2, 2, 2]]
    assert segment_steps(steps, everything, 2, None).tolist() == [[0] * 4 + [1] * 4]
    assert segment_steps(steps - 1, everything, 2, 8).tolist() == [[1, 0, 0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("options", [{"shrink": 1}, {"shrink": 3}, {"segments": 3, "steps": 8}, {"segments": 2}])
def test_a_trajectory_scores_every_token_once_in_the_state_of_its_slice(options):
    rows = make_rows()
    passes = passes_of("trajectory", rows, canvas="full", **options)
    assert torch.equal(torch.stack([one.scored for one in passes]).sum(0), rows.response.long())
    for one in passes:
        for row in range(len(rows.tokens)):
            steps = rows.reveal_step[row]
            if not one.scored[row].any():
                continue
            first = steps[one.scored[row]].min()
            hidden = rows.response[row] & (steps >= first)
            assert torch.equal(one.noisy[row] == MASK, hidden)


def test_a_trajectory_with_one_step_per_slice_is_the_samplers_own_state():
    rows = make_rows(1, stop_token_ids=())
    for n, one in enumerate(passes_of("trajectory", rows)):
        step = rows.reveal_step[rows.response].unique()[n]
        assert torch.equal(one.scored, rows.response & (rows.reveal_step == step))
        assert torch.equal(one.noisy == MASK, rows.response & (rows.reveal_step >= step))


@pytest.mark.parametrize(("canvas", "end_tokens", "last"), [
    ("masked", None, END), ("masked", 0, END - 1), ("masked", 1, END), ("full", 0, END - 1), ("full", 3, END + 2),
])  # fmt: skip
def test_end_tokens_say_how_many_of_them_are_learned(canvas, end_tokens, last):
    rows = make_rows(3, attended=torch.ones(3, 20, dtype=torch.bool))
    estimator = build_estimator("trajectory", canvas=canvas, end_tokens=end_tokens)
    counted = estimator.counted(rows, estimator.passes(rows, seed=0, step=0, update=0))
    assert (counted.long() * torch.arange(20)).amax(-1).tolist() == [min(last, 17), last, last]


def test_a_trajectory_needs_the_reveal_steps():
    with pytest.raises(ValueError, match="reveal_step"):
        passes_of("trajectory", make_rows(reveal_step=None))


# --- the plan, keys and errors


def test_a_plan_travels_as_plain_data():
    plan = StepPlan("maskgrpo", {"mu": 3, "gamma": 0.7}, seed=4, step=5, stop_token_ids=(2, 3), cfg_scale=1.5)
    plain = plan.to_plain()
    assert plain["stop_token_ids"] == [2, 3] and type(plain["options"]) is dict
    assert StepPlan.from_plain(plain) == plan
    assert plan.build() is StepPlan.from_plain(plain).build()
    assert plan.build().updates == 3


ROWS, SESSIONS = [7, 7, 9, 9], [0, 1, 0, 1]


def test_who_shares_a_mask():
    assert mask_keys(ROWS, SESSIONS, "index") == [0, 1, 0, 1]
    assert mask_keys(ROWS, SESSIONS, "group") == [7, 7, 9, 9]
    assert len(set(mask_keys(ROWS, SESSIONS, "sample"))) == 4


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maskgrpoo", {}, "estimator='maskgrpoo' is not usable; .*positions, sampled_steps, spg, trajectory"),
        (
            "diffu_grpo",
            {"gamma": 0.5},
            "gamma=0.5 .* diffu_grpo has no such option; it has mu",
        ),
        ("maskgrpo", {"mu": 0}, "mu=0"),
        ("maskgrpo", {"mu": 1.5}, "mu=1.5"),
        ("maskgrpo", {"canvas": "hidden"}, "canvas='hidden' is not usable; allowed: masked, full, visible, trimmed"),
        ("maskgrpo", {"gamma": 1.0}, "gamma=1.0"),
        ("maskgrpo", {"remasking": "full"}, "remasking='full'"),
        ("maskgrpo", {"level_cap": 0}, "level_cap=0"),
        ("unigrpo", {"low": 0.9, "high": 0.1}, "low=0.9"),
        ("unigrpo", {"levels": "random"}, "levels='random'"),
        ("coupled", {"low": 0.0}, "low=0.0"),
        ("trajectory", {"shrink": 2, "segments": 2}, "segments=2"),
        ("trajectory", {"shrink": 0}, "shrink=0"),
        ("trajectory", {"end_tokens": -1}, "end_tokens=-1"),
        ("diffu_grpo", {"prompt_mask_ratio": 2}, "prompt_mask_ratio=2"),
        ("sampled_steps", {"canvas": "masked"}, "canvas='masked' .* use full: the ratio to the sampler's record"),
        ("sampled_steps", {"draws": 0}, "draws=0"),
        ("sampled_steps", {"weighting": "loss"}, "weighting='loss' is not usable; allowed: entropy, uniform"),
        ("sampled_steps", {"stratified": 1}, "stratified=1 is not usable; allowed: true, false"),
    ],
)
def test_a_wrong_option_is_named(name, options, message):
    with pytest.raises(OptionError, match=message):
        build_estimator(name, **options)
