"""What the benchmarks print: counted arithmetic and memory are right, and the implementations compared do the same."""

import argparse
import importlib
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_size(monkeypatch):
    """The folder on the path, and a size that takes no time; width 32 with 3 layers, 4 heads and 48 inside."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setitem(load("common").SIZES, "small", (32, 3, 4, 48))


def load(name):
    return importlib.import_module(name)


def options(**given):
    defaults = {"device": "cpu", "dtype": None, "repeats": 0, "threads": None, "attention": "sdpa"}
    return argparse.Namespace(**(defaults | given))


def test_forward_flops_are_those_that_torch_counts():
    common = load("common")
    model = common.make_model("small", 200, CPU, torch.float32, attention="eager")
    tokens = torch.arange(2 * 24).view(2, 24)
    chosen = torch.zeros(2, 24, dtype=torch.bool)
    chosen[:, 10:17] = True
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens, logits_positions=chosen)
    assert common.forward_flops("small", 200, 48, 24, 14) == counter.get_total_flops()


def test_matrix_rate_is_of_the_fastest_product(monkeypatch):
    common = load("common")
    seconds = iter([2.0, 1.0])
    monkeypatch.setattr(
        common, "side_by_side", lambda ways, *_: {name: common.Measured(next(seconds), 0.0, None) for name in ways}
    )
    assert common.matrix_rate(CPU, torch.float32) == 2 * 2048**3 / 1.0


def test_side_by_side_takes_the_fastest_run(monkeypatch):
    common = load("common")
    clock = iter([0, 100, 0, 100, 10, 14, 20, 21, 30, 33, 40, 45])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    measured = common.side_by_side({"a": lambda: 1, "b": lambda: 2}, CPU, 2)
    assert {name: (m.seconds, m.result) for name, m in measured.items()} == {"a": (3, 1), "b": (1, 2)}


def test_without_repeats_the_first_run_is_the_time(monkeypatch):
    common = load("common")
    clock = iter([10, 14])
    monkeypatch.setattr(common.time, "perf_counter", lambda: next(clock))
    assert common.side_by_side({"a": lambda: 1}, CPU, 0)["a"].seconds == 4


def test_peak_bytes_count_what_lives_at_one_time():
    memory = load("memory")
    mib = 2**20

    def run():
        first = torch.empty(3 * mib, dtype=torch.uint8)
        second = torch.empty(2 * mib, dtype=torch.uint8)
        del first
        third = torch.empty(mib, dtype=torch.uint8)
        del second, third

    assert memory.peak_bytes(run) == pytest.approx(5 * mib, rel=0.001)


def test_padding_masks_are_of_prompts_from_an_eighth_to_all():
    common = load("common")
    mask = common.padding_mask(3, 16, 4)
    assert mask.sum(-1).tolist() == [2 + 4, 9 + 4, 16 + 4]
    assert mask[:, -4:].all() and (mask.diff(dim=-1) >= 0).all()


def test_packed_and_padded_batches_have_the_same_logits():
    common = load("common")
    model = common.make_model("small", 200, CPU, torch.float32)
    mask = common.padding_mask(3, 16, 8)
    tokens = torch.randint(0, 198, mask.shape, generator=torch.Generator().manual_seed(0))
    columns = torch.arange(16, 20).expand(3, -1)
    with torch.no_grad():
        padded, packed = (
            model(tokens, logits_positions=columns, **common.mask_inputs(mask, packed=packed)).logits
            for packed in (False, True)
        )
    torch.testing.assert_close(padded, packed, atol=1e-5, rtol=0)


def test_plain_and_exact_rollouts_give_equal_tokens_where_answers_end():
    rollout = load("rollout")
    given = options(lengths="gsm8k", requests=7, certain=0.25, compile=False)
    line = rollout.measure(("small", 200, 8, 64, 16, 16, 3), given)
    plain, exact, joining, approximate = line[6:9], line[11], line[12:15], line[15:]
    assert exact == joining[-1] == "1.0000"
    assert float(plain[0]) > 0 and float(approximate[-1]) > 4.0
    assert float(line[5]) == pytest.approx(32, rel=0.5)


def test_the_plain_sampler_decodes_every_block():
    rollout = load("rollout")
    calls = []

    def model(canvas):
        calls.append(canvas.clone())
        return argparse.Namespace(logits=torch.randn(*canvas.shape, 20, generator=torch.Generator().manual_seed(1)))

    tokens = rollout.plain_decode(model, torch.zeros(2, 3, dtype=torch.long), 8, 4, 4, 19)
    assert len(calls) == 4 and not (tokens == 19).any()
    assert [(canvas == 19).sum(-1).tolist() for canvas in calls] == [[8, 8], [6, 6], [4, 4], [2, 2]]
    assert (calls[2][:, 7:] == 19).all() and not (calls[2][:, :7] == 19).any()


@pytest.mark.parametrize("mixed", [False, True])
def test_plain_and_our_updates_have_one_loss_and_gradient(mixed):
    update = load("update")
    given = options(checkpointing=False, frozen_head=False, mask_ratio=0.8, mixed=mixed)
    line = update.measure(("small", 200, 16, 16, 4), given)
    assert float(line[-3]) < 1e-5


def block_options(**given):
    sizes = {"size": "small", "vocabulary": 60, "canvas": 24, "block": 4, "steps": 2, "batch": 3}
    return options(**(sizes | given))


def test_the_block_causal_benchmark_compares_equal_tokens(monkeypatch):
    benchmark = load("block_causal")
    monkeypatch.setitem(benchmark.SIZES, "small", (32, 2, 4, 2, 48))
    line = benchmark.measure(block_options())
    assert line[:4] == ["small", "24", "3", "4/2"] and line[-1] == "1.0000"
    assert float(line[-2]) == round(2 * 2 * 2 * 8 * 3 * (24 + 1) * 4 / 2**20, 1)
    assert benchmark.measure_training(block_options())[:3] == ["small", "3 × 24", "4"]
    counted = benchmark.count_masks(block_options(canvas=64, block=64, batch=128))
    assert counted[:3] == ["128 × 64", "64", "2"] and counted[-1] == "100%"  # both copies of a row are one tile


class Uneven(torch.nn.Module):
    """A mask predictor whose log-probabilities depend on how much it sees."""

    supports_logits_positions = False
    block_length = None

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)).double())

    def forward(self, tokens, attention_mask=None):
        seen = torch.nn.functional.one_hot(tokens, 8).double() @ self.table
        return argparse.Namespace(logits=seen + seen.mean(1, keepdim=True))


@pytest.fixture
def answers():
    """Two answers of three and two tokens behind one token of a prompt; mask token 7, end token 6."""
    from maskgrpo_plugin.diffusion.estimators import Rows

    tokens = torch.tensor([[0, 1, 2, 6], [0, 3, 6, 6]])
    response = torch.tensor([[False, True, True, True]] * 2)
    return Rows(
        tokens=tokens,
        response=response,
        prompt=~response,
        attended=torch.ones_like(response),
        keys=torch.tensor([4, 5]),
        mask_token_id=7,
        stop_token_ids=(6,),
        reveal_step=torch.tensor([[-1, 1, 0, 2], [-1, 0, 1, 2]]),
    )


def score(model, canvas, answer, places):
    log_probs = model(torch.tensor([canvas])).logits[0].log_softmax(-1)
    return sum(log_probs[n, answer[n]] for n in places)


def test_exact_quantities_are_those_of_the_canvases_written_out(answers):
    bench, model = load("estimators"), Uneven()
    first = [0, 1, 2, 6]
    trajectory = sum(
        score(model, canvas, first, [n]) for canvas, n in (([0, 7, 7, 7], 2), ([0, 7, 2, 7], 1), ([0, 1, 2, 7], 3))
    )
    left = sum(
        score(model, canvas, first, [n]) for canvas, n in (([0, 7, 7, 7], 1), ([0, 1, 7, 7], 2), ([0, 1, 2, 7], 3))
    )
    second = [0, 3, 6, 6]  # its tail is masked, and no token of the answer
    bound = score(model, [0, 7, 7, 7], second, [1, 2]) / 2
    bound = bound + (score(model, [0, 7, 6, 7], second, [1]) + score(model, [0, 3, 7, 7], second, [2])) / 2
    found = {name: bench.exact_sums(model, answers, name) for name in bench.EXACT}
    torch.testing.assert_close(found["trajectory"][0], trajectory.detach())
    torch.testing.assert_close(found["left to right"][0], left.detach())
    torch.testing.assert_close(found["bound"][1], bound.detach())
    gradient = bench.gradient(
        model, lambda: bench.exact_sums(model, answers, "bound", torch.tensor([0.0, 2.0]).double())
    )
    torch.testing.assert_close(gradient, 2 * torch.autograd.grad(bound, model.table)[0].flatten())


def test_estimates_of_the_bound_have_its_mean_and_exact_ones_no_error(answers):
    bench, model, moved = load("estimators"), Uneven(), Uneven()
    with torch.no_grad():
        moved.table += 0.1 * torch.randn(8, 8, generator=torch.Generator().manual_seed(4))
    batch = bench.Batch(answers, torch.tensor([1.0, -0.5]).double(), {"sample": answers.keys})
    weights = batch.advantages / 5
    gradients = {
        n: bench.gradient(model, lambda n=n: bench.exact_sums(model, answers, n, weights)) for n in bench.EXACT
    }
    tokens = torch.tensor([3.0, 2.0]).double()
    ratios = {
        n: (bench.exact_sums(moved, answers, n) - bench.exact_sums(model, answers, n)) / tokens for n in bench.EXACT
    }

    def measured(name, passes, draws):
        kind = bench.KINDS[name]
        drawn = [bench.one_draw(model, moved, batch, kind, kind.build(passes), seed) for seed in range(draws)]
        return bench.quality([g for g, _ in drawn], gradients), bench.ratio_errors([r for _, r in drawn], ratios)

    quality, errors = measured("trajectory, segments (d2)", 3, 2)
    assert quality["trajectory"]["cosine"] == pytest.approx(1) and quality["trajectory"]["norm"] == pytest.approx(1)
    assert errors["trajectory"] == {"bias": pytest.approx(0, abs=1e-6), "deviation": pytest.approx(0, abs=1e-6)}
    assert errors["bound"]["bias"] > 0.01
    quality, errors = measured("elbo (BGPO)", 1, 300)
    assert quality["bound"]["cosine of the mean"] > 0.99 > quality["bound"]["cosine"]
    assert errors["bound"]["bias"] < 0.15 < errors["bound"]["deviation"]
    quality, _ = measured("positions (JustGRPO)", 6, 4)
    assert quality["left to right"]["cosine of the mean"] > 0.99


def test_every_kind_has_a_budget():
    bench = load("estimators")
    for name, kind in bench.KINDS.items():
        built = [passes for passes in bench.BUDGETS if kind.build(passes)]
        assert len(built) >= 3, name
