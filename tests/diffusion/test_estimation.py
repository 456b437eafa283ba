"""Views of a mask level: what is hidden, what is visible, and what enters the loss."""

import pytest
import torch

from maskgrpo_plugin.diffusion.estimation import EstimationPlan, after_first_stop, level_views

MASK, STOP = 99, 2


def plan(**changes):
    settings = {
        "mode": "random",
        "ratios": [0.5, 0.9],
        "weights": [1.0, 1.0],
        "seed": 3,
        "step": 1,
        "stop_token_ids": [STOP],
    }
    return EstimationPlan(**(settings | changes))


@pytest.fixture
def batch():
    tokens = torch.randint(10, 50, (6, 20), generator=torch.Generator().manual_seed(0))
    tokens[:, 14] = STOP
    response = torch.zeros(6, 20, dtype=torch.bool)
    response[:, 5:] = True
    attended = torch.ones_like(response)
    attended[0, 18:] = False
    response &= attended
    return tokens, response, attended, torch.arange(6)


def views(batch, level=0, **changes):
    tokens, response, attended, keys = batch
    return level_views(tokens, response, attended, keys, plan(**changes), level, mask_token_id=MASK)


def test_the_tail_is_what_follows_the_first_stop():
    tokens = torch.tensor([[5, 2, 6, 2, 7], [5, 6, 7, 8, 9]])
    response = torch.tensor([[0, 1, 1, 1, 1]] * 2).bool()
    assert after_first_stop(tokens, response, [2]).tolist() == [[False, False, True, True, True], [False] * 5]


def test_the_tail_is_visible_and_not_in_the_loss_by_default(batch):
    [view], attended = views(batch, ratios=[1.0, 1.0])
    assert view.masked[:, 5:15].all()
    assert not view.masked[:, 15:].any()
    assert torch.equal(view.noisy[:, 15:], batch[0][:, 15:])
    assert torch.equal(attended, batch[2])


def test_train_on_tail_masks_it(batch):
    [view], _ = views(batch, ratios=[1.0, 1.0], train_on_tail=True)
    assert torch.equal(view.masked, batch[1])


def test_trimmed_canvas_hides_the_tail_from_the_model(batch):
    [view], attended = views(batch, ratios=[1.0, 1.0], canvas="trimmed", train_on_tail=True)
    assert not attended[:, 15:].any()
    assert not view.masked[:, 15:].any()


def test_noisy_holds_the_mask_exactly_where_masked(batch):
    [view], _ = views(batch)
    assert torch.equal(view.noisy == MASK, view.masked)
    assert torch.equal(view.noisy[~view.masked], batch[0][~view.masked])


def test_levels_and_steps_draw_other_masks_and_the_same_place_the_same(batch):
    first, again = views(batch)[0][0].masked, views(batch)[0][0].masked
    assert torch.equal(first, again)
    assert not torch.equal(first, views(batch, ratios=[0.5, 0.5], level=1)[0][0].masked)
    assert not torch.equal(first, views(batch, step=2)[0][0].masked)


def test_masks_do_not_depend_on_the_order_or_split_of_rows(batch):
    _tokens, _response, _attended, _keys = batch
    whole = views(batch)[0][0].masked
    order = torch.tensor([4, 1, 5, 0, 3, 2])
    shuffled = views(tuple(x[order] for x in batch))[0][0].masked
    assert torch.equal(shuffled, whole[order])
    for row in range(6):
        alone = views(tuple(x[row : row + 1] for x in batch))[0][0].masked
        assert torch.equal(alone[0], whole[row])


def test_coupled_views_cover_every_token_once(batch):
    both, _ = views(batch, complement=True, train_on_tail=True)
    assert len(both) == 2
    assert torch.equal(both[0].masked ^ both[1].masked, batch[1])


def test_diffu_grpo_hides_prompt_tokens_without_learning_them(batch):
    [view], _ = views(batch, mode="full", ratios=[1.0, 1.0], prompt_mask_ratio=0.5)
    hidden_prompt = view.noisy[:, :5] == MASK
    assert 0 < hidden_prompt.float().mean() < 1
    assert not view.masked[:, :5].any()
