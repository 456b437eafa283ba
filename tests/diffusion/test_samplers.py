"""The samplers against the published decodes, closed forms, and each row against itself in another batch."""

import math
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from golden_files import golden_runs
from safetensors.torch import load_file

from maskgrpo_plugin.diffusion.levels import get_schedule
from maskgrpo_plugin.diffusion.samplers import (
    SAMPLERS,
    build_for_run,
    build_sampler,
    option,
    option_names,
    register_sampler,
)
from maskgrpo_plugin.diffusion.samplers.options import number
from maskgrpo_plugin.diffusion.samplers.scheduled import ScheduledSampler
from maskgrpo_plugin.errors import OptionError

MASK, VOCAB = 11, 12
ORDERINGS = ("low_confidence", "random", "entropy", "margin")
IMAGE = ("emerge", "maskgit")


class FakeModel:
    """Logits by column, (L, V) or (V,), whatever the tokens; counts its calls and remembers its inputs."""

    def __init__(self, logits):
        self.logits, self.inputs, self.masks = logits, [], []

    def __call__(self, input_ids, attention_mask=None):
        self.inputs.append(input_ids.clone())
        self.masks.append(attention_mask)
        return SimpleNamespace(logits=self.logits.expand(*input_ids.shape, self.logits.shape[-1]))


class MixingModel:
    """A small random bidirectional model in float64 that hides padding and counts positions over tokens alone."""

    def __init__(self, projected=False):
        draw = torch.Generator().manual_seed(0)
        self.embed = torch.randn(VOCAB, 16, generator=draw, dtype=torch.float64)
        self.place = torch.randn(64, 16, generator=draw, dtype=torch.float64)
        self.head = torch.randn(16, VOCAB, generator=draw, dtype=torch.float64)
        self.supports_logits_positions = projected
        self.projected_rows = []

    def __call__(self, input_ids, attention_mask=None, logits_positions=None):
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        x = self.embed[input_ids] + self.place[(seen.cumsum(-1) - 1).clamp(min=0)]
        scores = (x @ x.transpose(1, 2) / 8).masked_fill(seen[:, None, :] == 0, float("-inf"))
        logits = torch.tanh(scores.softmax(-1) @ x + x) @ self.head
        if logits_positions is not None:
            if logits_positions.dtype == torch.bool:
                logits = logits[logits_positions]
            else:
                logits = logits.gather(1, logits_positions.unsqueeze(-1).expand(-1, -1, VOCAB))
            self.projected_rows.append(logits.numel() // VOCAB)
        return SimpleNamespace(logits=logits)


def prompts(rows, length, seed=1):
    return torch.randint(0, MASK, (rows, length), generator=torch.Generator().manual_seed(seed))


def generators(seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def text(**options):
    return build_sampler("semi_autoregressive", **({"steps": 8, "response_length": 8, "block_length": 4} | options))


def image(name, **options):
    return build_sampler(name, **({"steps": 6, "response_length": 12} | options))


# ---- published decodes


@pytest.mark.golden
@pytest.mark.parametrize(("name", "settings"), golden_runs("llada_tiny"))
def test_equals_the_published_sampler_token_for_token(golden_path, name, settings):
    from transformers import AutoModelForCausalLM

    from maskgrpo_plugin.models import register

    register()
    model = AutoModelForCausalLM.from_pretrained(golden_path("llada_tiny"), dtype=torch.float32).eval()
    golden = load_file(golden_path("llada_tiny", "decode.safetensors"))
    ours = {"gen_length": "response_length", "remasking": "ordering"}
    options = {ours.get(key, key): value for key, value in settings.items() if key != "mask_token_id"}
    # the published sampler takes more steps than tokens, of which the surplus at a block's end reveals nothing
    options["steps"] = min(settings["steps"], settings["gen_length"])
    sampler = build_sampler("semi_autoregressive", **options)
    output = sampler.generate(model, golden["prompts"], mask_token_id=settings["mask_token_id"])
    assert torch.equal(output.sequences, golden[name])
    assert output.model_calls == options["steps"]
    length = golden["prompts"].shape[1]
    assert (output.reveal_step[:, :length] == -1).all() and (output.reveal_step[:, length:] >= 0).all()


# ---- one row, whatever its batch


def build_any(name, **options):
    if name in IMAGE:
        return image(name, **options)
    return text(response_length=12, steps=6, ordering=name, **options)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("name", [*ORDERINGS, *IMAGE])
def test_a_row_does_not_depend_on_its_batch(name, cfg_scale):
    sampler = build_any(name, temperature=1.0, cfg_scale=cfg_scale)
    rows = [prompts(1, length, seed)[0] for seed, length in enumerate((3, 7, 5, 7))]

    def sample(chosen):
        width = max(len(rows[i]) for i in chosen)
        ids = torch.stack([torch.nn.functional.pad(rows[i], (width - len(rows[i]), 0)) for i in chosen])
        mask = torch.stack([(torch.arange(width) >= width - len(rows[i])).long() for i in chosen])
        more = {"uncond_input_ids": torch.zeros_like(ids)} if name in IMAGE else {}
        output = sampler.generate(MixingModel(), ids, mask, mask_token_id=MASK, generator=generators(chosen), **more)
        return {
            i: (
                output.sequences[n, width:].tolist(),
                output.reveal_step[n, width:].tolist(),
                int(output.row_model_calls[n]),
            )
            for n, i in enumerate(chosen)
        }

    together, alone = sample([0, 1, 2, 3]), {i: sample([i])[i] for i in range(4)}
    assert together == alone
    assert sample([3, 0]) == {i: alone[i] for i in (3, 0)}
    assert len({str(tokens) for tokens, _, _ in alone.values()}) > 1


def test_ties_do_not_depend_on_the_batch():
    model = FakeModel(torch.zeros(VOCAB))
    few = torch.full((1, 130), MASK)
    few[:, 20:100] = 4
    many = torch.full((3, 130), MASK)
    sampler = text(response_length=130, block_length=130, steps=10)
    alone = sampler.generate(model, few, mask_token_id=MASK)
    batched = sampler.generate(model, torch.cat([few, many]), mask_token_id=MASK)
    assert torch.equal(alone.reveal_step[0], batched.reveal_step[0])


@pytest.mark.parametrize("name", ["low_confidence", *IMAGE])
def test_rows_that_finish_early_leave_the_others_alone(name):
    canvas = torch.cat([prompts(4, 3), torch.full((4, 12), MASK)], dim=1)
    canvas[:2, 4:] = 1  # one mask left: done steps before the others
    sampler = build_any(name, temperature=1.0)
    together = sampler.generate(MixingModel(), canvas, mask_token_id=MASK, generator=generators(range(4)))
    for row in range(4):
        alone = sampler.generate(MixingModel(), canvas[[row]], mask_token_id=MASK, generator=generators([row]))
        assert torch.equal(alone.sequences[0], together.sequences[row])
        assert torch.equal(alone.reveal_step[0], together.reveal_step[row])
        assert alone.row_model_calls[0] == together.row_model_calls[row]
    assert len(together.row_model_calls.unique()) > 1


@pytest.mark.parametrize("name", ["low_confidence", *IMAGE])
def test_one_generator_repeats_and_leaves_the_global_one_alone(name):
    sampler = build_any(name, temperature=1.0)
    state = torch.get_rng_state()
    runs = [
        sampler.generate(
            MixingModel(), prompts(3, 4), mask_token_id=MASK, generator=torch.Generator().manual_seed(seed)
        ).sequences
        for seed in (5, 5, 6)
    ]
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", ["low_confidence", *IMAGE])
def test_one_generator_a_row(name):
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        build_any(name).generate(MixingModel(), prompts(3, 4), mask_token_id=MASK, generator=generators([0, 1]))


# ---- which tokens


@pytest.mark.parametrize("name", ["low_confidence", *IMAGE])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_token_frequencies_are_those_of_the_softmax(name, temperature):
    logits = torch.linspace(-1.5, 1.5, VOCAB)
    logits[MASK] = 9.0
    rows = 20000
    build = partial(image, name) if name in IMAGE else partial(text, block_length=1)
    sampler = build(response_length=1, steps=1, temperature=temperature)
    output = sampler.generate(
        FakeModel(logits), prompts(rows, 1), mask_token_id=MASK, generator=torch.Generator().manual_seed(0)
    )
    counts = output.sequences[:, 1].bincount(minlength=VOCAB).double()
    drawn_at = 1.0 if name == "maskgit" else temperature  # MaskGIT's temperature is that of the order
    expected = rows * (logits[:MASK].double() / drawn_at).softmax(-1)
    assert counts[MASK] == 0
    assert float(((counts[:MASK] - expected) ** 2 / expected).sum()) < 35  # 10 degrees of freedom: p < 1.2e-4


@pytest.mark.parametrize("cfg_scale", [0.0, 2.0])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", [*ORDERINGS, *IMAGE])
def test_never_emits_the_mask_or_a_forbidden_token(name, temperature, cfg_scale):
    logits = torch.zeros(VOCAB)
    logits[MASK], logits[3] = 50.0, 40.0
    sampler = build_any(name, temperature=temperature, cfg_scale=cfg_scale, forbidden_token_ids=(3,))
    ids = torch.zeros(8, 3, dtype=torch.long)
    more = {"uncond_input_ids": ids} if name in IMAGE else {}
    output = sampler.generate(FakeModel(logits), ids, mask_token_id=MASK, **more)
    assert not torch.isin(output.sequences, torch.tensor([3, MASK])).any()
    assert (output.reveal_step[:, 3:] >= 0).all()


@pytest.mark.parametrize("name", IMAGE)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_image_tokens_come_from_the_slice(name, temperature):
    logits = torch.zeros(VOCAB)
    logits[0], logits[6] = 50.0, 1.0
    sampler = image(name, temperature=temperature, vocab_slice=(5, 8))
    output = sampler.generate(FakeModel(logits), prompts(200, 2), mask_token_id=MASK)
    response = output.sequences[:, 2:]
    assert set(response.unique().tolist()) == ({6} if temperature == 0 else {5, 6, 7})
    with pytest.raises(OptionError, match="vocab_slice"):
        image(name, vocab_slice=(5, 99)).generate(FakeModel(logits), prompts(1, 2), mask_token_id=MASK)
    with pytest.raises(ValueError, match="nothing is left"):
        image(name, vocab_slice=(MASK, VOCAB)).generate(FakeModel(logits), prompts(1, 2), mask_token_id=MASK)


# ---- semi-autoregressive: how many and which positions


def test_reveal_counts_of_each_step():
    output = text(response_length=20, block_length=10, steps=8).generate(
        MixingModel(), prompts(3, 4), mask_token_id=MASK
    )
    for row in output.reveal_step[:, 4:]:
        assert row.bincount().tolist() == [3, 3, 2, 2] * 2
        assert row[:10].max() < 4 <= row[10:].min()
    assert output.model_calls == 8 and output.row_model_calls.tolist() == [8, 8, 8]


def test_orderings_choose_the_expected_positions():
    # column: its probabilities; the mask and all else are out of reach
    shares = [[0.50, 0.49, 0.01], [0.45, 0.275, 0.275], [0.48, 0.26, 0.26]]
    logits = torch.full((3, VOCAB), -40.0)
    logits[:, :3] = torch.tensor(shares).log()
    expected = {"low_confidence": [0, 2, 1], "margin": [2, 1, 0], "entropy": [0, 2, 1]}
    for ordering, order in expected.items():
        sampler = text(response_length=3, block_length=3, steps=3, ordering=ordering)
        output = sampler.generate(FakeModel(logits), torch.full((1, 3), MASK), mask_token_id=MASK)
        assert output.reveal_step[0].argsort().tolist() == order, ordering
    # two columns that entropy and confidence rank differently
    logits = torch.full((2, VOCAB), -40.0)
    logits[0, :9] = torch.tensor([0.52] + [0.06] * 8).log()
    logits[1, :2] = torch.tensor([0.51, 0.49]).log()
    for ordering, order in {"low_confidence": [0, 1], "entropy": [1, 0]}.items():
        sampler = text(response_length=2, block_length=2, steps=2, ordering=ordering)
        output = sampler.generate(FakeModel(logits), torch.full((1, 2), MASK), mask_token_id=MASK)
        assert output.reveal_step[0].argsort().tolist() == order, ordering


def test_random_order_is_uniform_whatever_the_logits():
    logits = torch.zeros(4, VOCAB)
    logits[0, 0] = 30.0
    sampler = text(response_length=4, block_length=4, steps=4, ordering="random")
    output = sampler.generate(
        FakeModel(logits), torch.full((8000, 4), MASK), mask_token_id=MASK, generator=torch.Generator().manual_seed(0)
    )
    first = (output.reveal_step == 0).double().mean(0)
    assert (first - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 8000)


def test_guidance_hides_the_prompt_and_extrapolates():
    class PromptModel:
        """Wants token 1 by 1 with the prompt and by 0 without; token 2 by 1.5 always."""

        shapes = ()

        def __call__(self, input_ids, attention_mask=None):
            self.shapes = (input_ids.shape, attention_mask.shape)
            logits = torch.zeros(*input_ids.shape, VOCAB)
            logits[..., 1] = (input_ids[:, :1] != MASK).float()
            logits[..., 2] = 1.5
            return SimpleNamespace(logits=logits)

    model, ids = PromptModel(), prompts(2, 3)
    for scale, token in ((0.0, 2), (0.4, 2), (0.6, 1)):
        output = text(cfg_scale=scale).generate(model, ids, torch.ones_like(ids), mask_token_id=MASK)
        assert (output.sequences[:, 3:] == token).all()
        assert model.shapes == (((2, 11), (2, 11)) if scale == 0 else ((4, 11), (4, 11)))
        assert output.model_calls == 8


@pytest.mark.parametrize("name", [*ORDERINGS, *IMAGE])
@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
def test_projected_positions_equal_full_logits(name, cfg_scale):
    ids = prompts(3, 4)
    sampler = build_any(name, temperature=0.7, cfg_scale=cfg_scale)
    more = {"uncond_input_ids": torch.zeros_like(ids)} if name in IMAGE else {}
    models = MixingModel(), MixingModel(projected=True)
    full, projected = (
        sampler.generate(model, ids, mask_token_id=MASK, generator=generators(range(3)), **more) for model in models
    )
    assert torch.equal(full.sequences, projected.sequences)
    assert torch.equal(full.reveal_step, projected.reveal_step)
    if name not in IMAGE and cfg_scale == 0:
        assert models[1].projected_rows == [12, 6] * 3  # masked positions of the active block only


# ---- stopping early


def test_early_stop_keeps_the_tokens_and_saves_calls():
    rows, seeds = prompts(6, 4), range(10, 16)
    full = text(response_length=16, steps=16, temperature=1.0)
    early = text(response_length=16, steps=16, temperature=1.0, stop_token_ids=(3,), fill_token_id=9)
    a = full.generate(MixingModel(), rows, mask_token_id=MASK, generator=generators(seeds))
    b = early.generate(MixingModel(), rows, mask_token_id=MASK, generator=generators(seeds))
    lengths = set()
    for row in range(6):
        blocks = a.sequences[row, 4:].view(4, 4)
        stopped = (blocks == 3).any(-1).tolist()
        kept = 4 * (stopped.index(True) + 1) if any(stopped) else 16
        lengths.add(kept)
        assert torch.equal(a.sequences[row, : 4 + kept], b.sequences[row, : 4 + kept])
        assert torch.equal(a.reveal_step[row, : 4 + kept], b.reveal_step[row, : 4 + kept])
        assert (b.sequences[row, 4 + kept :] == 9).all() and (b.reveal_step[row, 4 + kept :] == -1).all()
        assert int(b.row_model_calls[row]) == kept
    assert len(lengths) > 1 and max(lengths) < 16
    assert b.model_calls == max(lengths) and a.model_calls == 16


def test_all_rows_stopped_ends_generation_and_fills_with_the_first_stop_token():
    logits = torch.zeros(VOCAB)
    logits[5] = 9.0
    output = text(stop_token_ids=(6, 5)).generate(FakeModel(logits), prompts(2, 3), mask_token_id=MASK)
    assert output.sequences[:, 3:].tolist() == [[5] * 4 + [6] * 4] * 2
    assert output.model_calls == 4


def test_stop_tokens_of_prompt_and_canvas_do_not_stop():
    logits = torch.zeros(VOCAB)
    logits[4] = 9.0
    canvas = torch.tensor([[5, MASK, MASK, MASK, MASK], [5, 5, MASK, MASK, MASK]])
    sampler = text(response_length=4, block_length=2, steps=4, stop_token_ids=(5,))
    output = sampler.generate(FakeModel(logits), canvas, mask_token_id=MASK)
    assert output.sequences.tolist() == [[5, 4, 4, 4, 4], [5, 5, 4, 4, 4]]


def test_the_mask_token_never_fills():
    with pytest.raises(OptionError, match="fill_token_id"):
        text(stop_token_ids=(5,), fill_token_id=MASK).generate(
            FakeModel(torch.zeros(VOCAB)), prompts(1, 1), mask_token_id=MASK
        )


# ---- canvas


@pytest.mark.parametrize("name", ["low_confidence", *IMAGE])
def test_a_canvas_of_masks_is_the_prompt_with_masks_appended(name):
    ids = prompts(3, 5)
    canvas = torch.cat([ids, torch.full((3, 12), MASK)], dim=1)
    sampler = build_any(name, temperature=1.0)
    a, b = (
        sampler.generate(MixingModel(), x, mask_token_id=MASK, generator=generators(range(3))) for x in (ids, canvas)
    )
    assert torch.equal(a.sequences, b.sequences) and torch.equal(a.reveal_step, b.reveal_step)
    assert (canvas[:, 5:] == MASK).all()  # the input is left as it was


@pytest.mark.parametrize("name", ["low_confidence", *IMAGE])
def test_visible_tokens_of_a_canvas_stay(name):
    canvas = torch.cat([prompts(2, 3), torch.full((2, 12), MASK)], dim=1)
    canvas[0, 5], canvas[1, 8:11], canvas[:, -1] = 7, 9, 2
    visible = canvas != MASK
    output = build_any(name, temperature=1.0).generate(MixingModel(), canvas, mask_token_id=MASK)
    assert torch.equal(output.sequences[visible], canvas[visible])
    assert torch.equal(output.reveal_step == -1, visible)
    assert output.reveal_step.max() < 6 and not (output.sequences == MASK).any()


def test_a_longer_canvas_shares_the_steps():
    canvas = torch.full((1, 16), MASK)
    output = text(response_length=8, block_length=4, steps=6).generate(MixingModel(), canvas, mask_token_id=MASK)
    assert output.reveal_step.unique().tolist() == list(range(6)) and output.model_calls == 6
    with pytest.raises(OptionError, match="steps=2 is not usable; the canvas has 4 blocks"):
        text(response_length=8, block_length=4, steps=2).generate(MixingModel(), canvas, mask_token_id=MASK)


@pytest.mark.parametrize("name", ["low_confidence", *IMAGE])
def test_on_step_sees_each_step(name):
    seen = []
    output = build_any(name, temperature=1.0).generate(
        MixingModel(), prompts(2, 3), mask_token_id=MASK, on_step=lambda *step: seen.append(step)
    )
    assert [step for step, _, _ in seen] == list(range(6))
    for step, tokens, probability in seen:
        assert torch.equal(tokens == MASK, output.reveal_step > step)
        assert torch.equal(probability > 0, output.reveal_step == step)


@pytest.mark.parametrize("name", [*ORDERINGS, *IMAGE])
def test_on_step_tells_the_probability_of_what_is_revealed(name):
    # the logits are those of the column alone, so that the probabilities are known: the mask token's is shared out
    logits = torch.randn(15, VOCAB, generator=torch.Generator().manual_seed(3))
    expected = logits[:, :MASK].softmax(-1)
    seen = []
    output = build_any(name, temperature=0.5).generate(
        FakeModel(logits), prompts(2, 3), mask_token_id=MASK, on_step=lambda *step: seen.append(step)
    )
    told = sum(probability for _, _, probability in seen)
    columns = torch.arange(3, 15)
    for row in range(2):
        assert torch.allclose(told[row, 3:], expected[columns, output.sequences[row, 3:]], atol=1e-6)
    assert (told[:, :3] == 0).all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((name, {"cfg_scale": scale}) for name in (*ORDERINGS, *IMAGE) for scale in (0.0, 1.5)),
        ("low_confidence", {"parallel": "credit", "threshold": 0.3}),
        ("low_confidence", {"block_length": 4, "stop_token_ids": (2, 7)}),
    ],
)
def test_on_step_changes_nothing(name, options):
    sampler, ids = build_any(name, temperature=1.0, **options), prompts(3, 5)
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    more = {"uncond_input_ids": torch.zeros_like(ids)} if name in IMAGE else {}

    def sample(on_step):
        return sampler.generate(
            MixingModel(), ids, mask, mask_token_id=MASK, generator=generators(range(3)), on_step=on_step, **more
        )

    def meddle(step, tokens, probability):
        tokens.fill_(0)
        probability.fill_(0)

    alone, observed = sample(None), sample(meddle)
    assert torch.equal(alone.sequences, observed.sequences)
    assert torch.equal(alone.reveal_step, observed.reveal_step)
    assert torch.equal(alone.row_model_calls, observed.row_model_calls)


# ---- emerge and MaskGIT


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_emerge_leaves_the_share_of_the_schedule(schedule):
    rows, length, steps = 2000, 16, 5
    sampler = image("emerge", response_length=length, steps=steps, schedule=schedule)
    output = sampler.generate(
        FakeModel(torch.zeros(VOCAB)), prompts(rows, 1), mask_token_id=MASK, generator=torch.Generator().manual_seed(0)
    )
    for step in range(steps):
        share = (output.reveal_step[:, 1:] > step).double().mean().item()
        k = get_schedule(schedule)((step + 1) / steps)
        assert abs(share - k) <= 4 * math.sqrt(k * (1 - k) / (rows * length))


@pytest.mark.parametrize(("length", "steps"), [(10, 10), (33, 10), (16, 12), (16, 20)])
@pytest.mark.parametrize(
    ("schedule", "k"), [("cosine", lambda x: math.cos(math.pi / 2 * x)), ("linear", lambda x: 1 - x)]
)
def test_maskgit_leaves_the_number_of_the_schedule_and_reveals_one_token_at_least(schedule, k, length, steps):
    sampler = image("maskgit", response_length=length, steps=steps, schedule=schedule, temperature=3.0)
    output = sampler.generate(MixingModel(), prompts(4, 2), mask_token_id=MASK)
    before = length
    for step in range(output.model_calls):
        left = (output.reveal_step > step).sum(-1).tolist()
        before = min(math.floor(length * k((step + 1) / steps) + 1e-6), before - 1)
        assert left == [before] * 4
    assert before == 0 and output.model_calls == min(length, steps)


@pytest.mark.parametrize(("length", "steps"), [(16, 12), (16, 20), (10, 10)])
def test_maskgit_equals_the_published_loop_where_the_schedule_stands_still(length, steps):
    """Published: a step keeps max(1, min(⌊N·k⌋, unknown − 1)) masks, those of the lowest confidence."""
    canvas = torch.cat([prompts(1, 3), torch.full((1, length), MASK)], dim=1)
    output = image("maskgit", response_length=length, steps=steps, temperature=0.0).generate(
        MixingModel(), canvas, mask_token_id=MASK
    )
    for step in range(steps):
        hidden = canvas == MASK
        logits = MixingModel()(canvas).logits
        logits[..., MASK] = -math.inf
        confidence, guess = logits.softmax(-1).max(-1)
        filled = torch.where(hidden, guess, canvas)
        if step == steps - 1:
            break
        left = max(1, min(math.floor(length * math.cos(math.pi / 2 * (step + 1) / steps)), int(hidden.sum()) - 1))
        confidence[~hidden] = math.inf
        canvas = filled.scatter(1, confidence.topk(left, largest=False).indices, MASK)
    assert torch.equal(output.sequences, filled)


def test_maskgit_reveals_the_most_probable_first_and_its_noise_anneals():
    logits = torch.zeros(8, VOCAB)
    logits[:, 3] = torch.arange(8.0) + 5
    canvas = torch.full((4000, 8), MASK)
    options = {"response_length": 8, "steps": 4, "schedule": "linear"}
    output = image("maskgit", temperature=0.0, **options).generate(FakeModel(logits), canvas[:1], mask_token_id=MASK)
    assert output.reveal_step[0].tolist() == [3, 3, 2, 2, 1, 1, 0, 0]
    # equal confidences at a point mass: of two columns, the better is first with probability σ(Δ / scale)
    pair = torch.full((2, VOCAB), -60.0)
    pair[0, :2] = torch.tensor([0.8, 0.2]).log()
    pair[1, 3] = 0.0
    sampler = image("maskgit", temperature=2.0, response_length=2, steps=2, schedule="linear")
    output = sampler.generate(
        FakeModel(pair), torch.full((20000, 2), MASK), mask_token_id=MASK, generator=torch.Generator().manual_seed(0)
    )
    scale = 2.0 * (1 - 1 / 2)
    better = sum(p / (1 + p ** (1 / scale)) for p in (0.8, 0.2))
    share = (output.reveal_step[:, 1] == 0).double().mean().item()
    assert abs(share - better) < 4 * math.sqrt(better * (1 - better) / 20000)


@pytest.mark.parametrize("name", IMAGE)
def test_image_guidance_is_one_batch_with_masks_joined_once(name):
    ids, uncond = prompts(2, 3), torch.full((2, 3), 10)
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    model = FakeModel(torch.zeros(VOCAB))
    sampler = image(name, cfg_scale=3.0, temperature=1.0)
    output = sampler.generate(
        model, ids, mask, mask_token_id=MASK, uncond_input_ids=uncond, generator=generators([0, 1])
    )
    first, joined = model.inputs[0], torch.cat([mask, torch.ones(2, 12, dtype=torch.long)], dim=1)
    assert torch.equal(first[:2, :3], ids) and torch.equal(first[2:, :3], uncond)
    assert output.model_calls == len(model.inputs)
    for tokens, seen in zip(model.inputs, model.masks, strict=True):
        half = len(tokens) // 2
        assert torch.equal(tokens[:half, 3:], tokens[half:, 3:]) and seen.shape == tokens.shape
    assert torch.equal(model.masks[0], torch.cat([joined, joined]))

    model = FakeModel(torch.zeros(VOCAB))
    sampler.generate(
        model,
        ids,
        mask,
        mask_token_id=MASK,
        uncond_input_ids=uncond,
        uncond_attention_mask=torch.tensor([[0, 0, 1]] * 2),
    )
    assert model.masks[0][2:, :4].tolist() == [[0, 0, 1, 1]] * 2


@pytest.mark.parametrize("name", IMAGE)
def test_image_guidance_formula_and_whole_canvas(name):
    class PromptModel:
        def __call__(self, input_ids, attention_mask=None):
            logits = torch.zeros(*input_ids.shape, VOCAB)
            logits[..., 1] = torch.where(input_ids[:, :1] == 10, 0.0, 1.0)
            logits[..., 2] = 1.5
            return SimpleNamespace(logits=logits)

    ids, uncond = torch.zeros(2, 3, dtype=torch.long), torch.full((2, 3), 10)
    masks = torch.full((2, 12), MASK)
    for scale, token in ((0.4, 2), (0.6, 1)):
        sampler = image(name, cfg_scale=scale, temperature=0.0)
        for given, without in ((ids, uncond), (torch.cat([ids, masks], 1), torch.cat([uncond, masks], 1))):
            output = sampler.generate(PromptModel(), given, mask_token_id=MASK, uncond_input_ids=without)
            assert (output.sequences[:, 3:] == token).all()
    with pytest.raises(ValueError, match="uncond_input_ids"):
        sampler.generate(PromptModel(), ids, mask_token_id=MASK)
    with pytest.raises(ValueError, match="uncond_input_ids has shape"):
        sampler.generate(PromptModel(), ids, mask_token_id=MASK, uncond_input_ids=uncond[:, :2])


# ---- options


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("other", {}, "semi_autoregressive, emerge, maskgit"),
        ("semi_autoregressive", {"block_length": 3}, "block_length=3"),
        ("semi_autoregressive", {"block_length": 0}, "block_length=0"),
        ("semi_autoregressive", {"steps": 1}, "steps=1"),
        ("semi_autoregressive", {"steps": 3}, "steps=3"),
        ("semi_autoregressive", {"steps": 10}, "steps=10"),
        ("semi_autoregressive", {"steps": 2.0}, "steps=2.0"),
        ("semi_autoregressive", {"temperature": -0.1}, "temperature=-0.1"),
        ("semi_autoregressive", {"temperature": math.nan}, "temperature=nan"),
        ("semi_autoregressive", {"temperature": math.inf}, "temperature=inf"),
        ("semi_autoregressive", {"cfg_scale": -1}, "cfg_scale=-1"),
        ("semi_autoregressive", {"ordering": "best"}, "ordering='best'.*low_confidence, random, entropy, margin"),
        ("semi_autoregressive", {"stop_token_ids": 3}, "stop_token_ids=3"),
        ("semi_autoregressive", {"forbidden_token_ids": (-1,)}, "forbidden_token_ids"),
        ("semi_autoregressive", {"fill_token_id": -1}, "fill_token_id=-1"),
        ("semi_autoregressive", {"stop_token_ids": (3,), "forbidden_token_ids": (3,)}, "fill_token_id=3"),
        ("semi_autoregressive", {"response_length": 0}, "response_length=0"),
        ("semi_autoregressive", {"step": 4}, "step=4.*no such option.*steps, response_length"),
        ("emerge", {"ordering": "random"}, "ordering='random'.*no such option"),
        ("emerge", {"schedule": "square"}, "schedule='square'.*cosine, linear"),
        ("emerge", {"steps": 0}, "steps=0"),
        ("maskgit", {"temperature": -1.0}, "temperature=-1.0"),
        ("maskgit", {"cfg_scale": -1.0}, "cfg_scale=-1.0"),
        ("maskgit", {"vocab_slice": (5, 5)}, "vocab_slice"),
        ("maskgit", {"vocab_slice": (5,)}, "vocab_slice"),
        ("semi_autoregressive", {"early_stop": 1}, "early_stop=1.*true, false"),
        ("semi_autoregressive", {"low_threshold": 0.95}, "low_threshold=0.95"),
    ],
)
def test_errors_name_the_option(name, options, named):
    base = {"steps": 4, "response_length": 8} | ({"block_length": 4} if name == "semi_autoregressive" else {})
    with pytest.raises(OptionError, match=named) as error:
        build_sampler(name, **(base | options))
    assert isinstance(error.value, ValueError)


def test_missing_options_are_named():
    with pytest.raises(OptionError, match="response_length"):
        build_sampler("emerge", steps=4)


def test_unknown_arguments_of_generate_are_errors():
    with pytest.raises(TypeError, match="uncond_input_ids"):
        text().generate(MixingModel(), prompts(1, 2), mask_token_id=MASK, uncond_input_ids=prompts(1, 2))


def test_without_early_stop_every_block_is_decoded():
    logits = torch.zeros(VOCAB)
    logits[5] = 9.0
    output = text(stop_token_ids=(5,), early_stop=False).generate(FakeModel(logits), prompts(2, 3), mask_token_id=MASK)
    assert output.model_calls == 8 and (output.reveal_step[:, 3:] >= 0).all()


# ---- by name


def test_a_sampler_of_ones_own_is_found_by_its_name():
    @register_sampler("left_to_right")
    @dataclass(frozen=True, kw_only=True)
    class LeftToRight(ScheduledSampler):
        """Reveals `stride` tokens per step from the left."""

        modalities = ("text",)
        stride: int = option(number(1, whole=True), 2)

        def reveal(self, logits, chosen, positions, total, step, generator):
            return positions & (positions.cumsum(-1) <= self.stride)

    try:
        sampler = build_for_run("left_to_right", {"steps": 5}, response_length=6, temperature=0.0, stop_token_ids=(1,))
        output = sampler.generate(MixingModel(), prompts(1, 2), mask_token_id=MASK)
        assert output.reveal_step[0].tolist() == [-1, -1, 0, 0, 1, 1, 2, 2]
        assert "stride" in option_names("left_to_right") and "temperature" not in option_names("left_to_right")
        with pytest.raises(OptionError, match=r"stride=0"):
            build_sampler("left_to_right", response_length=6, stride=0)
        with pytest.raises(ValueError, match="already registered"):
            register_sampler("left_to_right")(type("Other", (LeftToRight,), {}))
    finally:
        SAMPLERS._entries.pop("left_to_right")


def test_a_runs_options_are_the_samplers_own():
    sampler = build_for_run("emerge", {"steps": 4}, response_length=8, temperature=0.5, stop_token_ids=(1,))
    assert (sampler.steps, sampler.temperature) == (4, 0.5)
    with pytest.raises(OptionError, match=r"response_length=8.*no such option; it has steps"):
        build_for_run("emerge", {"response_length": 8}, temperature=0.5)
    with pytest.raises(OptionError, match=r"block_length=4.*no such option; it has steps, cfg_scale"):
        build_for_run("emerge", {"block_length": 4}, response_length=8)


def test_what_runs_have_not_asked_for_is_the_published_default():
    text, image = build_sampler("semi_autoregressive", response_length=128), build_sampler("emerge", response_length=9)
    assert (text.steps, text.block_length, text.early_stop) == (128, None, True)
    assert (image.steps, image.schedule) == (20, "cosine")
