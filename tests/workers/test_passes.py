"""From a batch to passes and back: what a unit holds, the packed line, and how much one forward of the engine holds."""

import math
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from family_models import make_model

sys.path.insert(0, str(Path(__file__).parent))
import ranks
from verl.utils import tensordict_utils as tu

import maskgrpo_plugin.trainer.losses  # noqa: F401  (registers them)
from maskgrpo_plugin.config import PolicyLossSettings
from maskgrpo_plugin.diffusion.estimators import Estimator, build_estimator, make_pass
from maskgrpo_plugin.diffusion.estimators.plan import StepPlan
from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.diffusion.samplers.record import FIELDS
from maskgrpo_plugin.models.llada import LLaDAConfig, LLaDAModelLM
from maskgrpo_plugin.workers.engine import MaskedDiffusionEngine, masked_diffusion
from maskgrpo_plugin.workers.engine.passes import (
    make_line,
    make_units,
    rows_of,
    scoring_units,
    take_rows,
    units_per_rank,
)
from maskgrpo_plugin.workers.losses import update_loss

MASK, STOP = 25, 2
SETTINGS = {"use_dynamic_bsz": False, "micro_batch_size_per_gpu": 4, "global_batch_size": 4, "temperature": 1.0}


def plan_of(estimator, *, cfg_scale=0.0, **options):
    return StepPlan(estimator, options, seed=7, step=3, stop_token_ids=(STOP,), cfg_scale=cfg_scale)


def trajectory_batch(rows=4, length=64, *, seed=0):
    """Answers without an end, of which every token was revealed at a step of its own."""
    g = torch.Generator().manual_seed(seed)
    return {
        "prompts": [torch.randint(9, 20, (3 + row,), generator=g).tolist() for row in range(rows)],
        "responses": [torch.randint(9, 20, (length,), generator=g).tolist() for _ in range(rows)],
        "mask_key": list(range(rows)),
        "advantages": torch.randn(rows, generator=g).tolist(),
        "reveal_step": [torch.randperm(length, generator=g).tolist() for _ in range(rows)],
    }


def units_of(batch, plan, *, update=0, **division):
    """Rows, passes and units of a plain batch."""
    estimator = plan.build()
    data = ranks.to_tensordict(batch, range(len(batch["prompts"])))
    rows = rows_of(data, plan, estimator, MASK)
    passes = estimator.passes(rows, seed=plan.seed, step=plan.step, update=update)
    return rows, passes, make_units(data, rows, passes, estimator, update, **division)


class Recorder:
    """Calls a model, and keeps of each call the lengths of the line's rows, its tokens and the bytes saved for the
    backward pass.
    """

    def __init__(self, model):
        self.model, self.lengths, self.ids, self.saved = model, [], [], []

    def __call__(self, input_ids, *, packing, **options):
        self.lengths.append(packing.boundaries.diff().tolist())
        self.ids.append(input_ids[0].split(self.lengths[-1]))
        total = 0

        def keep(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = self.model(input_ids, packing=packing, **options)
        self.saved.append(total)
        return output


class Engine(MaskedDiffusionEngine):
    """The engine around a model that is there already: one rank, no FSDP; `others` are the numbers of further ranks."""

    def __init__(self, model, others=()):
        self.module = Recorder(model)
        self.others = others
        self._mask_token_id = MASK
        self.ulysses_sequence_parallel_size = 1
        self._autocast_dtype, self._image_slice = torch.float32, None

    def get_data_parallel_group(self):
        return torch.distributed.group.WORLD

    def get_data_parallel_size(self):
        return 1

    def _gradient_sync_context(self, is_last_micro_batch):
        return torch.enable_grad()

    def _of_ranks(self, *numbers):
        return torch.tensor([numbers, *self.others])


def policy_loss(model_output, data, dp_group=None):
    """−Σ A·ℓ̂ over the tokens that count, by verl's mean; two values per token are added."""
    response = [
        row[-len(mask) - 1 : -1]
        for row, mask in zip(model_output["log_probs"].unbind(), data["response_mask"].unbind(), strict=True)
    ]
    values = torch.cat([row if row.dim() == 1 else row.sum(-1) for row in response])
    counted = values * data["response_mask"].values() * data["advantages"].values()
    return -counted.sum() / max(data["batch_num_tokens"], 1), {}


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return LLaDAModelLM(
            LLaDAConfig(
                d_model=32,
                n_layers=2,
                n_heads=4,
                n_kv_heads=4,
                mlp_hidden_size=64,
                vocab_size=26,
                embedding_size=26,
                mask_token_id=MASK,
                eos_token_id=STOP,
                pad_token_id=STOP,
                init_std=0.1,
                attn_implementation="sdpa",
            )
        ).eval()


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory):
    """A process group of this process alone, for verl's sums over ranks."""
    store = torch.distributed.FileStore(str(tmp_path_factory.mktemp("store") / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def run(model, batch, plan, *, forward_only=False, others=(), update=0, loss=policy_loss, **settings):
    """One update, or the estimates of all: the engine's recorder, gradients by name, and verl's output."""
    engine = Engine(model, others)
    data = ranks.to_tensordict(
        batch, range(len(batch["prompts"])), estimation=plan.to_plain(), update=update, **(SETTINGS | settings)
    )
    model.zero_grad(set_to_none=True)
    output = engine.forward_backward_batch(data, None if forward_only else loss, forward_only)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return engine.module, gradients, output


def assert_close(got, expected, atol=1e-6):
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, atol=atol, rtol=0)


def test_rows_are_padded_to_the_longest_on_the_right():
    batch = ranks.make_batch(3)
    data = ranks.to_tensordict(batch, range(3))
    offsets = data["input_ids"].offsets()
    data["input_ids"] = torch.nested.nested_tensor_from_jagged(data["input_ids"].values(), offsets)  # length not known
    rows = rows_of(data, plan_of("trajectory"), build_estimator("trajectory"), MASK)
    width = max(len(p) + 8 for p in batch["prompts"])
    assert rows.tokens.shape == (3, width)
    for row, (prompt, response) in enumerate(zip(batch["prompts"], batch["responses"], strict=True)):
        start, end = len(prompt), len(prompt) + 8
        assert rows.tokens[row].tolist() == prompt + response + [0] * (width - end)
        assert rows.prompt[row].nonzero().flatten().tolist() == list(range(start))
        assert rows.response[row].nonzero().flatten().tolist() == list(range(start, end))
        assert rows.attended[row].sum() == end
        assert rows.reveal_step[row, start:end].tolist() == batch["reveal_step"][row]


def test_rows_of_jagged_tensors_are_taken_in_any_order_and_know_their_longest():
    pieces = [torch.arange(length * 2).view(length, 2) + 100 * length for length in (3, 1, 4, 2)]
    jagged = torch.nested.as_nested_tensor(pieces, layout=torch.jagged)
    chosen = [3, 1, 1, 0]
    taken = take_rows(jagged, torch.tensor(chosen))
    for got, row in zip(taken.unbind(), chosen, strict=True):
        assert torch.equal(got, pieces[row])
    assert taken.to_padded_tensor(0).shape == (4, 3, 2)


def test_a_unit_is_one_pass_that_scores_something():
    batch = trajectory_batch(2, 4)
    batch["reveal_step"] = [[0, 1, 1, 0], [0, 0, 0, 0]]
    plan = plan_of("trajectory", shrink=1)
    _, passes, units = units_of(batch, plan, split=True, count=4)
    assert scoring_units(passes, plan.build()) == units.scoring == 3 and len(units) == 4 and units.width == 1
    assert units.row.tolist() == [0, 0, 1, 0] and units.number.tolist() == [0, 1, 0, 0]
    start = len(batch["prompts"][0])
    counted = units.counted_of(torch.arange(4))
    assert [(row.nonzero().flatten() - start).tolist() for row in counted[:2]] == [[0, 3], [1, 2]]
    assert not counted[3].any() and not units.scored_of(torch.tensor([3])).any()
    line = make_line(units, torch.tensor([1, 2]), guided=False)
    first, second = line.ids.split(line.lengths)
    assert first.tolist() == [*batch["prompts"][0], batch["responses"][0][0], MASK, MASK, batch["responses"][0][3]]
    assert second.tolist() == [*batch["prompts"][1], *[MASK] * 4]
    assert line.targets.tolist() == [*batch["responses"][0][1:3], *batch["responses"][1]]
    assert line.places.tolist() == [start + 1, start + 2, *(len(first) + start + 1 + n for n in range(4))]


def test_a_unit_is_all_passes_of_a_row_where_they_are_added():
    batch = ranks.make_batch(4)
    rows, passes, units = units_of(batch, plan_of("coupled"))
    assert len(units) == 4 and units.width == 3 and units.number is None
    line = make_line(units, torch.tensor([2, 0]), guided=False)
    lines = line.ids.split(line.lengths)
    assert len(lines) == 6
    for n, row in enumerate((2, 0)):
        for number, p in enumerate(passes):
            assert torch.equal(lines[3 * n + number], p.noisy[row][rows.attended[row]])
    assert torch.equal(line.ids[line.places], torch.full((len(line.places),), MASK))


def test_every_rank_takes_as_many_units_in_whole_micro_batches():
    assert units_per_rank([5, 2], 4) == 8
    assert units_per_rank([8, 2], 4) == 8
    assert units_per_rank([3], 1) == 3
    assert units_per_rank([0, 0], 4) == 4


def test_units_that_fill_up_are_the_shortest_and_change_nothing(model):
    batch, plan = trajectory_batch(3, 8), plan_of("trajectory", shrink=4)
    own, gradients, _ = run(model, batch, plan, micro_batch_size_per_gpu=2)
    most_passes, longest, rows, scoring = 2, 13, 3, 6
    other = (most_passes, longest, rows, scoring + 3)
    filled, same, _ = run(model, batch, plan, micro_batch_size_per_gpu=2, others=[other])
    assert (len(own.lengths), len(filled.lengths)) == (3, 5)
    assert [length for line in filled.lengths[3:] for length in line] == [3 + 8] * 4
    assert_close(same, gradients)


def test_ranks_with_one_slice_split_where_another_rank_has_two(model):
    batch = trajectory_batch(3, 8)
    batch["reveal_step"] = [[0] * 8] * 3
    plan = plan_of("trajectory", shrink=1)
    alone, _, _ = run(model, batch, plan, micro_batch_size_per_gpu=1)
    beside, _, _ = run(model, batch, plan, micro_batch_size_per_gpu=1, others=[(2, 13, 3, 6)])
    assert (len(alone.lengths), len(beside.lengths)) == (3, 6)


def test_the_longest_row_of_any_rank_bounds_the_token_budget(model):
    batch, plan = ranks.make_batch(3), plan_of("coupled")
    budget = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 12}
    seen, _, _ = run(model, batch, plan, others=[(3, 30, 3, 9)], **budget)
    assert [len(lengths) for lengths in seen.lengths] == [6, 3]  # 30 tokens per pass hold two of these rows


@pytest.mark.parametrize("size", [1, 4, 6])
def test_as_many_slices_as_tokens_need_no_more_memory_than_one(model, size):
    batch = trajectory_batch(6)
    slices = plan_of("trajectory", shrink=1)
    sliced, _, _ = run(model, batch, slices, micro_batch_size_per_gpu=size)
    whole, _, _ = run(model, batch, plan_of("diffu_grpo", prompt_mask_ratio=0.0), micro_batch_size_per_gpu=size)
    assert sum(len(lengths) for lengths in sliced.lengths) == 6 * 64
    assert max(len(lengths) for lengths in sliced.lengths) == size
    assert max(map(sum, sliced.lengths)) <= size * (8 + 64)
    assert max(sliced.saved) <= max(whole.saved)


def test_token_budgets_count_passes(model):
    batch = trajectory_batch(4, 16)
    budget = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 70}
    sliced, gradients, _ = run(model, batch, plan_of("trajectory", shrink=2), **budget)
    assert sum(len(lengths) for lengths in sliced.lengths) == 4 * 8
    assert max(map(sum, sliced.lengths)) <= 70 and max(map(len, sliced.lengths)) == 3
    assert_close(gradients, run(model, batch, plan_of("trajectory", shrink=2))[1])
    coupled, _, _ = run(model, batch, plan_of("coupled"), **budget)
    assert max(map(sum, coupled.lengths)) <= 70 and all(len(lengths) == 3 for lengths in coupled.lengths)


def test_token_budgets_count_both_copies_of_block_causal_models():
    """Two slices of each block of four tokens, all blocks at once: two passes of a row."""
    batch, blocks = trajectory_batch(4, 16), make_model("sdar", vocab_size=26, mask_token_id=MASK)
    plan = replace(plan_of("trajectory", shrink=2), block_length=4)
    budget = {"use_dynamic_bsz": True, "max_token_len_per_gpu": 140}
    sliced, gradients, _ = run(blocks, batch, plan, **budget)
    assert 2 * max(map(sum, sliced.lengths)) <= 140 and max(map(len, sliced.lengths)) == 3
    assert sum(len(lengths) for lengths in sliced.lengths) == 4 * 2
    assert_close(gradients, run(blocks, batch, plan, micro_batch_size_per_gpu=1)[1])


@pytest.mark.parametrize(("size", "lines"), [(1, 3), (3, 3), (6, 6), (12, 12)])
def test_passes_that_are_added_lie_in_one_micro_batch_and_count_towards_its_size(model, size, lines):
    batch = ranks.make_batch(4)
    seen, gradients, _ = run(model, batch, plan_of("coupled"), micro_batch_size_per_gpu=size)
    assert [len(lengths) for lengths in seen.lengths] == [lines] * (12 // lines)
    for ids in seen.ids:
        for first in range(0, lines, 3):
            prompts = {tuple(line[:3].tolist()) for line in ids[first : first + 3]}
            assert len(prompts) == 1
    assert_close(gradients, run(model, batch, plan_of("coupled"), micro_batch_size_per_gpu=12)[1])


def test_guidance_adds_a_line_without_the_prompts_text():
    batch = ranks.make_batch(3) | {"uncond_ids": [[20], [21, 22], [23]]}
    _, _, units = units_of(batch, plan_of("maskgrpo", cfg_scale=1.0))
    chosen = torch.tensor([1, 2])
    line = make_line(units, chosen, guided=True)
    lines = line.ids.split(line.lengths)
    assert len(lines) == 4
    for n, row in enumerate(chosen.tolist()):
        response = lines[n][len(batch["prompts"][row]) :]
        assert lines[2 + n].tolist() == [*batch["uncond_ids"][row], *response.tolist()]
    assert len(line.places) == 2 * len(line.targets) == 2 * len(line.index)
    of_row = torch.repeat_interleave(torch.arange(4), torch.tensor(line.lengths))
    starts = torch.tensor([len(batch["prompts"][row]) for row in (1, 2)] + [2, 1])
    first = torch.tensor([0, *line.lengths[:-1]]).cumsum(0)
    within = line.places - first[of_row[line.places]] - starts[of_row[line.places]]
    own, uncond = within.chunk(2)
    assert torch.equal(own, uncond)
    tokens = torch.tensor([batch["responses"][row] for row in (1, 2)])
    assert torch.equal(tokens[of_row[line.places][: len(own)], own], line.targets)


def test_a_trimmed_tail_is_in_no_line():
    batch = ranks.make_batch(4)
    lengths = {}
    for canvas in ("masked", "trimmed"):
        _, _, units = units_of(batch, plan_of("maskgrpo", canvas=canvas))
        lengths[canvas] = make_line(units, torch.arange(4), guided=False).lengths
        assert units.to_batch()["attention_mask"].sum(-1).tolist() == lengths[canvas]
    for row in range(4):
        response = batch["responses"][row]
        answer = response.index(STOP) + 1 if STOP in response else 8
        assert lengths["masked"][row] == len(batch["prompts"][row]) + 8
        assert lengths["trimmed"][row] == len(batch["prompts"][row]) + answer
    assert lengths["trimmed"] != lengths["masked"]


@pytest.mark.parametrize("estimator", ["maskgrpo", "trajectory", "coupled"])
def test_a_batch_without_a_scored_token_has_no_gradient(model, estimator):
    batch = ranks.make_batch(4) | {"response_mask": [[0] * 8] * 4}
    _, gradients, _ = run(model, batch, plan_of(estimator))
    assert all(not value.any() for value in gradients.values())
    _, _, output = run(model, batch, plan_of(estimator), forward_only=True)
    log_probs = output["model_output"]["log_probs"]
    assert len(log_probs.values()) == sum(len(p) + 8 for p in batch["prompts"]) and not log_probs.values().any()


@pytest.mark.parametrize("settings", [{}, {"use_dynamic_bsz": True, "max_token_len_per_gpu": 40}])
@pytest.mark.parametrize("estimator", ["trajectory", "coupled", "maskgrpo"])
def test_estimates_of_the_engine_are_those_of_each_row_alone(model, estimator, settings):
    batch, plan = ranks.make_batch(5), plan_of(estimator)
    _, _, output = run(model, batch, plan, forward_only=True, micro_batch_size_per_gpu=5, **settings)
    got = output["model_output"]["log_probs"].unbind()
    built = plan.build()
    for update in range(built.updates if built.varies else 1):
        rows, passes, _ = units_of(batch, plan, update=update)
        for row, values in enumerate(got):
            length = int(rows.attended[row].sum())
            with torch.no_grad():
                canvases = torch.stack([p.noisy[row, :length] for p in passes])
                scores = model(canvases).logits.log_softmax(-1)
            log_probs = scores.gather(-1, rows.tokens[row, :length].expand(len(passes), -1).unsqueeze(-1)).squeeze(-1)
            expected = built.fold(
                [replace(p, scored=p.scored[row, :length], weight=p.weight[row, :length]) for p in passes],
                list(log_probs),
            )
            torch.testing.assert_close(values[:-1, update], expected[1:], atol=1e-5, rtol=0)


APART = {"draws": 3, "complement": True, "weighting": "none", "apart": True, "mu": 2}


@pytest.mark.parametrize("size", [1, 3, 8])
def test_estimates_that_stand_for_themselves_are_kept_by_draw(model, size):
    batch, plan = ranks.make_batch(3), plan_of("elbo", **APART)
    seen, _, output = run(model, batch, plan, forward_only=True, micro_batch_size_per_gpu=size)
    assert max(map(len, seen.lengths)) <= max(size, 2)
    got = [row[:-1] for row in output["model_output"]["log_probs"].unbind()]
    alone = plan.build()
    for update in range(2):
        rows, passes, _ = units_of(batch, plan, update=update)
        for row, values in enumerate(got):
            length = int(rows.attended[row].sum())
            with torch.no_grad():
                scores = model(torch.stack([p.noisy[row, :length] for p in passes])).logits.log_softmax(-1)
            true = rows.tokens[row, :length].expand(len(passes), -1).unsqueeze(-1)
            log_probs = scores.gather(-1, true).squeeze(-1)
            for draw in range(3):
                pair = slice(2 * draw, 2 * draw + 2)
                own = [replace(p, scored=p.scored[row, :length], weight=p.weight[row, :length]) for p in passes[pair]]
                expected = alone.fold(own, list(log_probs[pair]))
                torch.testing.assert_close(values[:, 3 * update + draw], expected[1:], atol=1e-5, rtol=0)


def test_a_unit_has_the_old_values_of_its_own_draw():
    batch, plan = ranks.make_batch(2), plan_of("elbo", **APART)
    estimator, data = plan.build(), ranks.to_tensordict(batch, range(2))
    values = torch.arange(16 * 6.0).view(16, 6)
    data["old_log_probs"] = torch.nested.nested_tensor_from_jagged(values, data["responses"].offsets())
    rows = rows_of(data, plan, estimator, MASK)
    passes = estimator.passes(rows, seed=7, step=3, update=1)
    units = make_units(data, rows, passes, estimator, 1, split=True, count=7)
    assert (units.scoring, units.width, scoring_units(passes, estimator)) == (6, 2, 6)
    assert units.row.tolist()[:6] == [0, 0, 0, 1, 1, 1] and units.number.tolist() == [0, 1, 2, 0, 1, 2, 0]
    fields = units.fields(torch.tensor([5, 1]))
    assert torch.equal(fields["old_log_probs"].values(), torch.cat([values[8:, 5], values[:8, 4]]))
    assert fields["response_mask"].values().sum() == estimator.maskable(rows).sum()


@pytest.mark.parametrize(("estimator", "options"), [
    ("elbo", APART), ("elbo", {"draws": 2, "complement": True}), ("positions", {"sampled": 4}),
    ("spg", {"block_length": 4, "draws": 2}), ("sampled_steps", {"draws": 3, "canvas": "full"}),
])  # fmt: skip
def test_the_gradient_does_not_depend_on_how_draws_lie_in_micro_batches(model, estimator, options):
    plan = plan_of(estimator, **options)
    batch = ranks.with_record(ranks.make_batch(4))
    whole = run(model, batch, plan, micro_batch_size_per_gpu=24)[1]
    assert any(value.any() for value in whole.values())
    for size in (1, 5):
        assert_close(run(model, batch, plan, micro_batch_size_per_gpu=size)[1], whole)


@pytest.mark.parametrize(("name", "estimator", "options"), [
    ("spg", "spg", {"block_length": 4, "draws": 2}), ("reinforce", "positions", {"sampled": 4}),
    ("bgpo", "elbo", APART), ("reinforce", "diffu_grpo", {}),
])  # fmt: skip
def test_verls_loss_takes_scores_without_old_values(model, name, estimator, options):
    """The ratio is then to the policy itself; SPG's estimates are two values per token."""
    actor = SimpleNamespace(
        policy_loss=PolicyLossSettings(loss_mode=name),
        loss_agg_mode="token-mean",
        loss_scale_factor=None,
        use_kl_loss=False,
        clip_ratio_low=0.2,
        clip_ratio_high=0.2,
        clip_ratio_c=3.0,
        global_batch_info={},
    )
    batch, plan, loss = ranks.make_batch(4), plan_of(estimator, **options), partial(update_loss, actor)
    _, whole, output = run(model, batch, plan, loss=loss, micro_batch_size_per_gpu=24)
    assert any(value.any() for value in whole.values())
    assert output["metrics"]["actor/ratio_mean"].aggregate() == 1.0
    assert_close(run(model, batch, plan, loss=loss, micro_batch_size_per_gpu=1)[1], whole)


@pytest.mark.parametrize("cfg_scale", [0.0, 1.5])
@pytest.mark.parametrize("estimator", ["trajectory", "coupled", "maskgrpo", "sampled_steps"])
def test_nothing_waits_for_the_device(model, monkeypatch, estimator, cfg_scale):
    """Tensors of the device `meta` have no values, so that whoever asks for one fails."""
    batch = ranks.with_record(ranks.make_batch(4)) | {"uncond_ids": [[20], [21, 22], [23], [24]]}
    plan = replace(plan_of(estimator, cfg_scale=cfg_scale), temperature=0.6, banned_token_ids=(MASK,))
    _, _, units = units_of(batch, plan, split=estimator in ("trajectory", "sampled_steps"), count=5)
    line = make_line(units, torch.tensor([0, 3, len(units) - 1]), guided=cfg_scale > 0)
    assert {part.device.type for part in vars(line).values() if isinstance(part, torch.Tensor)} == {"cpu"}
    monkeypatch.setattr(masked_diffusion, "get_device_id", lambda: torch.device("meta"))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda _: False)  # it does not know the device
    with torch.device("meta"):
        engine = Engine(LLaDAModelLM(model.config).eval())
    engine.module = engine.module.model
    got = engine._estimate(line, plan, with_entropy=False)
    assert got["log_probs"].device.type == "meta"
    with pytest.raises((RuntimeError, NotImplementedError)):
        got["log_probs"].values().sum().item()


def agrpo_actor(**changes):
    """An actor's config with the loss `agrpo`."""
    settings = {
        "policy_loss": PolicyLossSettings(loss_mode="agrpo"),
        "loss_agg_mode": "token-mean",
        "loss_scale_factor": None,
        "use_kl_loss": False,
        "kl_loss_coef": 0.0,
        "clip_ratio_low": 0.2,
        "clip_ratio_high": 0.2,
        "global_batch_info": {},
    }
    return SimpleNamespace(**(settings | changes))


def sampled_batch(model, **options):
    """Completions of the sampler with their record, and its plan's settings."""
    given = {"steps": 8, "block_length": 4, "response_length": 8, "stop_token_ids": (STOP,), "record": True}
    sampler = build_sampler("semi_autoregressive", **given, **options)
    batch = ranks.make_batch(6)
    for n, prompt in enumerate(batch["prompts"]):
        canvas, generator = torch.tensor([prompt + [MASK] * 8]), [torch.Generator().manual_seed(n)]
        output = sampler.generate(model, canvas, mask_token_id=MASK, generator=generator)
        batch["responses"][n] = output.sequences[0, -8:].tolist()
        batch["reveal_step"][n] = output.reveal_step[0, -8:].tolist()
        for name, part in zip(FIELDS, output.record.parts(), strict=True):
            values = torch.nn.functional.pad(part[0], (0, 9 - part.shape[-1]), value=-1) if part.dim() == 3 else part[0]
            batch.setdefault(name, []).append(values.tolist())
    batch["uncond_ids"] = [[MASK] * len(prompt) for prompt in batch["prompts"]]
    banned = (MASK, *sampler.forbidden_token_ids)
    return batch, {"temperature": sampler.temperature, "banned_token_ids": banned, "cfg_scale": sampler.cfg_scale}


SAMPLERS = {
    "temperature 1": {"temperature": 1.0},
    "cooler": {"temperature": 0.6, "ordering": "random"},
    "truncated": {"temperature": 0.6, "top_k": 8, "top_p": 0.9, "forbidden_token_ids": (3, 5)},
    "guided": {"temperature": 1.4, "cfg_scale": 0.7},
}


@pytest.mark.parametrize("options", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("weighting", ["entropy", "uniform"])
def test_the_first_ratio_to_the_samplers_record_is_one(model, options, weighting):
    """The loss is then −Σ weight·A over the drawn steps' tokens, divided by the number of draws of the batch."""
    batch, of_sampler = sampled_batch(model, **options)
    plan = replace(plan_of("sampled_steps", canvas="full", draws=5, weighting=weighting), **of_sampler)
    loss = partial(update_loss, agrpo_actor())
    _, gradients, output = run(model, batch, plan, loss=loss, micro_batch_size_per_gpu=4)
    assert output["metrics"]["actor/log_ratio_abs_max"].aggregate() < 2e-5
    _, passes, _ = units_of(batch, plan)
    advantages = torch.tensor(batch["advantages"])
    expected = -sum((p.loss_weight * advantages * p.scored.sum(-1)).sum() for p in passes) / (5 * 6)
    assert sum(output["loss"]) == pytest.approx(float(expected), abs=1e-4)
    assert any(value.any() for value in gradients.values())
    # of the model's own softmax, which is not what was drawn from, the ratio is another
    own = replace(plan, temperature=1.0, banned_token_ids=())
    _, _, other = run(model, batch | {"sampler_allowed": [[[-1]] * 8] * 6}, own, loss=loss, micro_batch_size_per_gpu=4)
    assert other["metrics"]["actor/log_ratio_abs_max"].aggregate() > 1e-2


def test_the_kl_term_is_weighted_like_the_ratio(model):
    """All tokens at one step and no advantage: the loss is β/(draws·B)·Σ ρ·k3 to a reference 0.3 below the policy."""
    batch, of_sampler = sampled_batch(model, **SAMPLERS["truncated"])
    batch |= {"reveal_step": [[0] * 8] * 6, "advantages": [0.0] * 6}
    plan = replace(plan_of("sampled_steps", canvas="full", draws=2), **of_sampler)
    estimates = [
        row[-9:-1] for row in run(model, batch, plan, forward_only=True)[2]["model_output"]["log_probs"].unbind()
    ]
    assert all(row.shape == (8, 2) and torch.equal(row[:, 0], row[:, 1]) for row in estimates)
    lower = torch.nested.as_nested_tensor([row - 0.3 for row in estimates], layout=torch.jagged)
    engine, actor = Engine(model), agrpo_actor(use_kl_loss=True, kl_loss_coef=0.5)
    data = ranks.to_tensordict(batch, range(6), estimation=plan.to_plain(), update=0, **SETTINGS)
    data["ref_log_prob"] = lower
    output = engine.forward_backward_batch(data, partial(update_loss, actor), False)
    record = torch.tensor(batch["sampler_log_prob"])
    ratio = (torch.stack(estimates)[..., 0] - record).exp()
    k3 = math.exp(-0.3) + 0.3 - 1
    assert sum(output["loss"]) == pytest.approx(float(0.5 * k3 * ratio.sum() / 6), rel=1e-4)


def test_the_loss_may_count_tokens_that_no_pass_scores():
    """Sequence-level estimators divide by the answer's length, whatever was masked."""

    @dataclass(frozen=True)
    class Half(Estimator):
        separable = False

        def passes(self, rows, *, seed, step, update):
            scored = rows.response & (torch.arange(rows.tokens.shape[1]) % 2 == 0)
            return [make_pass(rows.tokens.masked_fill(scored, rows.mask_token_id), scored)]

        def counted(self, rows, passes):
            return rows.response

    batch = ranks.make_batch(2)
    data = ranks.to_tensordict(batch, range(2))
    rows = rows_of(data, plan_of("maskgrpo"), Half(), MASK)
    passes = Half().passes(rows, seed=0, step=0, update=0)
    units = make_units(data, rows, passes, Half(), 0, count=3)
    assert units.to_batch()["loss_mask"].sum(-1).tolist() == [8, 8, 0]
    fields = units.fields(torch.tensor([1, 2]))
    assert [mask.sum().item() for mask in fields["response_mask"].unbind()] == [8, 0]
    assert [row.tolist() for row in fields["responses"].unbind()] == [
        batch["responses"][row] for row in (1, units.row[2])
    ]


def test_old_log_probabilities_are_those_of_the_update():
    batch = ranks.make_batch(2)
    plan = plan_of("maskgrpo")
    data = ranks.to_tensordict(batch, range(2))
    values = torch.arange(16 * 3.0).view(16, 3)
    data["old_log_probs"] = torch.nested.nested_tensor_from_jagged(values, data["responses"].offsets())
    tu.assign_non_tensor(data, temperature=1.0)
    rows = rows_of(data, plan, plan.build(), MASK)
    passes = plan.build().passes(rows, seed=0, step=0, update=2)
    units = make_units(data, rows, passes, plan.build(), 2)
    assert units.fields(torch.tensor([1]))["old_log_probs"].values().tolist() == values[8:, 2].tolist()
    assert "temperature" not in units.fields(torch.tensor([1])) and units.to_batch()["temperature"] == 1.0
