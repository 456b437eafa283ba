"""Masked log-probabilities and their gradients equal the direct computation, a bounded number of rows at a time."""

import contextlib

import pytest
import torch

from maskgrpo_plugin.diffusion.likelihood import fused_log_probs, masked_log_probs, sliced_log_probs

N, D, V = 23, 8, 50


def make_inputs(dtype=torch.float32, rows=N):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(rows, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    weight = torch.randn(V, D, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.randint(0, V, (rows,), generator=generator)
    return hidden, weight, targets


def direct(hidden, weight, targets, vocab_slice=(0, V)):
    """Log-probabilities and entropy in float64, all rows at once."""
    log_softmax = (hidden.double() @ weight.double().T)[:, slice(*vocab_slice)].log_softmax(-1)
    log_probs = log_softmax.gather(-1, (targets - vocab_slice[0]).unsqueeze(-1)).squeeze(-1)
    return log_probs, -(log_softmax.exp() * log_softmax).sum(-1)


@pytest.mark.parametrize("chunk_size", [1, 7, N, 1024])
@pytest.mark.parametrize("vocab_slice", [None, (10, 31)])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_values_and_gradients(chunk_size, vocab_slice, with_entropy):
    hidden, weight, targets = make_inputs()
    if vocab_slice is not None:
        targets = 10 + targets % 21
    log_probs, entropy = masked_log_probs(
        hidden,
        lambda h: h @ weight.T,
        targets,
        chunk_size=chunk_size,
        with_entropy=with_entropy,
        vocab_slice=vocab_slice,
    )
    expected_log_probs, expected_entropy = direct(hidden, weight, targets, vocab_slice or (0, V))
    assert log_probs.shape == (N,)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), expected_log_probs, atol=1e-5, rtol=1e-5)
    factors = torch.linspace(-1, 1, N)
    loss, expected_loss = (log_probs * factors).sum(), (expected_log_probs * factors).sum()
    if with_entropy:
        torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=1e-5)
        loss, expected_loss = loss + (entropy * factors).sum(), expected_loss + (expected_entropy * factors).sum()
    else:
        assert entropy is None
    gradients = torch.autograd.grad(loss, (hidden, weight))
    expected = torch.autograd.grad(expected_loss, (hidden, weight))
    torch.testing.assert_close(gradients, expected, atol=2e-5, rtol=1e-4)


def test_gradcheck():
    hidden, weight, targets = make_inputs(torch.float64, rows=5)

    def function(h, w):
        return masked_log_probs(h, lambda x: x @ w.T, targets, chunk_size=2, with_entropy=True)

    assert torch.autograd.gradcheck(function, (hidden, weight))


def test_bfloat16_logits_are_normalised_in_float32():
    hidden, weight, targets = make_inputs(torch.bfloat16)
    log_probs, _ = masked_log_probs(hidden, lambda h: h @ weight.T, targets, chunk_size=N)
    logits = (hidden @ weight.T).double()
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(
        log_probs.double(), logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0], atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("grad", [True, False])
def test_values_do_not_depend_on_gradients_being_on(grad):
    hidden, weight, targets = make_inputs()
    reference, _ = masked_log_probs(hidden, lambda h: h @ weight.T, targets, chunk_size=5)
    with torch.set_grad_enabled(grad):
        log_probs, _ = masked_log_probs(hidden, lambda h: h @ weight.T, targets, chunk_size=5)
    assert torch.equal(log_probs, reference)
    assert log_probs.requires_grad is grad


def test_the_head_sees_one_chunk_at_a_time_and_again_in_the_backward_pass():
    hidden, weight, targets = make_inputs()
    seen = []

    def project(rows):
        seen.append(rows.shape[0])
        return rows @ weight.T

    log_probs, _ = masked_log_probs(hidden, project, targets, chunk_size=5)
    assert seen == [5, 5, 5, 5, 3]
    log_probs.sum().backward()
    assert sorted(seen) == sorted([5, 5, 5, 5, 3] * 2)


def test_no_logits_are_saved_for_the_backward_pass():
    hidden, weight, targets = make_inputs()
    saved = []

    def pack(tensor):
        saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        masked_log_probs(hidden, lambda h: h @ weight.T, targets, chunk_size=5, with_entropy=True)
    assert not [shape for shape in saved if len(shape) == 2 and shape[1] == V]


@pytest.mark.parametrize("with_entropy", [False, True])
@pytest.mark.parametrize("vocab_slice", [None, (10, 31)])
def test_no_rows_still_lead_back_to_the_parameters(with_entropy, vocab_slice):
    body, head = torch.nn.Linear(4, D), torch.nn.Linear(D, V)
    hidden = body(torch.randn(3, 4))[torch.zeros(3, dtype=torch.bool)]
    log_probs, entropy = masked_log_probs(
        hidden, head, torch.zeros(0, dtype=torch.long), with_entropy=with_entropy, vocab_slice=vocab_slice
    )
    assert log_probs.shape == (0,)
    loss = log_probs.sum()
    if with_entropy:
        assert entropy.shape == (0,)
        loss = loss + entropy.sum()
    loss.backward()
    for parameter in [*body.parameters(), *head.parameters()]:
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))


def test_banned_tokens_leave_entropy_and_gradients_finite():
    hidden, weight, targets = make_inputs()
    banned = torch.zeros(V).index_fill(0, torch.tensor([V - 1]), -torch.inf)
    log_probs, entropy = masked_log_probs(
        hidden, lambda h: h @ weight.T + banned, targets % (V - 1), chunk_size=5, with_entropy=True
    )
    expected_log_probs, expected_entropy = direct(hidden, weight, targets % (V - 1), (0, V - 1))
    torch.testing.assert_close(log_probs.double(), expected_log_probs, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(entropy.double(), expected_entropy, atol=1e-5, rtol=1e-5)
    (log_probs.sum() + entropy.sum()).backward()
    assert bool(hidden.grad.isfinite().all())
    assert bool(weight.grad.isfinite().all())


@pytest.mark.parametrize("target", [9, 31])
def test_target_outside_the_slice_is_an_error_on_the_cpu(target):
    hidden, weight, _ = make_inputs(rows=1)
    with pytest.raises((IndexError, RuntimeError)):
        masked_log_probs(hidden, lambda h: h @ weight.T, torch.tensor([target]), vocab_slice=(10, 31))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(2, N, D)}, "hidden must be"),
        ({"target_ids": torch.zeros(N + 1).long()}, "target_ids must have shape"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"vocab_slice": (0, V + 1)}, "vocab_slice"),
        ({"vocab_slice": (5, 5)}, "vocab_slice"),
        ({"project": lambda h: h.sum()}, "project must map"),
    ],
)
def test_errors_name_the_argument(change, message):
    hidden, weight, targets = make_inputs()
    arguments = {"hidden": hidden, "project": lambda h: h @ weight.T, "target_ids": targets}
    with pytest.raises(ValueError, match=message):
        masked_log_probs(**(arguments | change))


def test_mixed_targets_are_scored_in_their_own_vocabulary():
    g = torch.Generator().manual_seed(0)
    hidden = torch.randn(9, 6, generator=g, requires_grad=True)
    head = torch.randn(6, 20, generator=g)
    targets = torch.tensor([3, 12, 15, 0, 11, 19, 14, 9, 10])

    def score(rows, targets, columns):
        return masked_log_probs(rows, lambda h: h @ head, targets, chunk_size=2, with_entropy=True, vocab_slice=columns)

    log_probs, entropy = sliced_log_probs(hidden, score, targets, (10, 16))
    logits = hidden @ head
    for n, target in enumerate(targets.tolist()):
        row = logits[n, 10:16].log_softmax(-1) if 10 <= target < 16 else logits[n].log_softmax(-1)
        expected = row[target - 10] if 10 <= target < 16 else row[target]
        torch.testing.assert_close(log_probs[n], expected)
        torch.testing.assert_close(entropy[n], -(row.exp() * row).sum())
    log_probs.sum().backward()
    assert (hidden.grad.abs().sum(-1) > 0).all()


# ---- a head that is one matrix


@pytest.mark.parametrize("chunk_size", [1, 7, N, 1024])
@pytest.mark.parametrize("vocab_slice", [None, (10, 31)])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("kept_mib", [0, 512])
def test_fused_values_and_gradients(chunk_size, vocab_slice, trained, kept_mib):
    hidden, weight, targets = make_inputs()
    hidden.requires_grad_(trained[0])
    weight.requires_grad_(trained[1])
    if vocab_slice is not None:
        targets = 10 + targets % 21
    log_probs = fused_log_probs(
        hidden, weight, targets, chunk_size=chunk_size, vocab_slice=vocab_slice, kept_mib=kept_mib
    )
    expected, _ = direct(hidden, weight, targets, vocab_slice or (0, V))
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=1e-5)
    factors = torch.linspace(-1, 1, N)
    inputs = [x for x in (hidden, weight) if x.requires_grad]
    gradients = torch.autograd.grad((log_probs * factors).sum(), inputs)
    torch.testing.assert_close(gradients, torch.autograd.grad((expected * factors).sum(), inputs), atol=2e-5, rtol=1e-4)


def test_fused_gradcheck():
    hidden, weight, targets = make_inputs(torch.float64, rows=5)
    assert torch.autograd.gradcheck(lambda h, w: fused_log_probs(h, w, targets, chunk_size=2), (hidden, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("hooks", [contextlib.nullcontext, torch.autograd.graph.save_on_cpu])
def test_fused_backward_passes_may_be_repeated(dtype, hooks):
    hidden, weight, targets = make_inputs(dtype)
    with hooks():
        log_probs = fused_log_probs(hidden, weight, targets, chunk_size=5, kept_mib=512)
    first, second = (torch.autograd.grad(log_probs.sum(), (hidden, weight), retain_graph=True) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert first[0].abs().max() > 0


def test_fused_bfloat16_is_normalised_in_float32():
    hidden, weight, targets = make_inputs(torch.bfloat16)
    log_probs = fused_log_probs(hidden, weight, targets, chunk_size=5)
    logits = (hidden @ weight.T).detach()
    expected = logits.double().log_softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(log_probs.double(), expected, atol=1e-5, rtol=1e-5)
    log_probs.sum().backward()
    assert hidden.grad.dtype == weight.grad.dtype == torch.bfloat16


def test_fused_products_follow_autocast():
    hidden, weight, targets = make_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_probs = fused_log_probs(hidden, weight, targets)
        reference, _ = masked_log_probs(hidden, lambda h: torch.nn.functional.linear(h, weight), targets)
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs, reference, atol=1e-5, rtol=0)
    gradients = torch.autograd.grad(log_probs.sum(), (hidden, weight))
    expected = torch.autograd.grad(reference.sum(), (hidden, weight))
    assert gradients[0].dtype == gradients[1].dtype == torch.float32
    torch.testing.assert_close(gradients, expected, atol=0.05, rtol=0.05)


def test_fused_keeps_as_many_logits_as_it_may():
    weight = torch.randn(2**16, D, requires_grad=True)
    hidden, _, targets = make_inputs()
    for kept_mib, expected in ((0, []), (3, [5, 5]), (512, [5, 5, 5, 5, 3])):  # a chunk of 5 takes 1.25 MiB
        shapes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, shapes=shapes: shapes.append(x.shape) or x, lambda x: x
        ):
            fused_log_probs(hidden, weight, targets, chunk_size=5, kept_mib=kept_mib)
        assert [shape[0] for shape in shapes if shape[1:] == (2**16,)] == expected


def test_fused_without_rows_still_leads_back_to_the_parameters():
    hidden, weight, targets = make_inputs(rows=0)
    fused_log_probs(hidden, weight, targets, vocab_slice=(10, 31)).sum().backward()
    assert hidden.grad.shape == (0, D) and torch.equal(weight.grad, torch.zeros(V, D))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(N)}, "hidden must be"),
        ({"target_ids": torch.zeros(3, dtype=torch.long)}, "target_ids must have shape"),
        ({"chunk_size": 0}, "chunk_size must be"),
        ({"vocab_slice": (10, 51)}, "vocab_slice must satisfy"),
    ],
)
def test_fused_errors_name_the_argument(change, message):
    hidden, weight, targets = make_inputs()
    with pytest.raises(ValueError, match=message):
        fused_log_probs(**({"hidden": hidden, "weight": weight, "target_ids": targets} | change))
