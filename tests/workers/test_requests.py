"""From a data row to a request: each modality by its family, the chat template's settings for all, padding where the
family attends to it; and the agent loop that sends it.
"""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

sys.path.insert(0, str(Path(__file__).parent))
import ranks

from maskgrpo_plugin.models.families import MMaDAFamily, build_family
from maskgrpo_plugin.workers import agent_loop
from maskgrpo_plugin.workers.rollout.requests import CanvasRequest, RequestBuilder, image_grid, pad_left
from maskgrpo_plugin.workers.rollout.server import DiffusionServer

SEVEN = [{"role": "user", "content": "a handwritten seven"}]
T2I, MMU = {"modality": "t2i"}, {"modality": "mmu", "image_codes": list(range(16))}


class AttendsToPadding(MMaDAFamily):
    """A family whose models were trained with their padding attended to."""

    def text_to_image(self, text, grid=None):
        prompt = super().text_to_image(text, grid)
        ones = (1,) * len(prompt.prompt_ids)
        return replace(prompt, prompt_mask=ones, uncond_mask=ones)


class ClosesAnswers(MMaDAFamily):
    """A family that puts a fixed token after an answer about an image."""

    def understanding(self, codes, messages, response_length, grid=None, **template_kwargs):
        prompt = super().understanding(codes, messages, response_length, grid, **template_kwargs)
        return replace(
            prompt,
            response_ids=(*prompt.response_ids, self.token_id("<|eoi|>")),
            response_mask=(*prompt.response_mask, 0),
        )


def load(folder, family=None):
    config, tokenizer = AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    return build_family(config, tokenizer) if family is None else family(config, tokenizer)


@pytest.fixture(scope="module")
def family(tiny_digits):
    return load(tiny_digits / "model")


@pytest.fixture
def switched(family):
    """The family with a chat template that has a setting."""
    template = family.tokenizer.chat_template
    family.tokenizer.chat_template = "{% if twice %}a {% endif %}" + (template or "{{ messages[0]['content'] }}")
    yield family
    family.tokenizer.chat_template = template


@pytest.mark.parametrize("info", [{}, MMU], ids=["text", "mmu"])
def test_the_chat_templates_settings_reach_every_prompt_with_a_chat(switched, info):
    plain, twice = (
        RequestBuilder(switched.tokenizer, switched, template_kwargs=settings).build(SEVEN, info, 17)
        for settings in ({}, {"twice": True})
    )
    (word,) = switched.encode("a ")
    assert len(twice.prompt_ids) == len(plain.prompt_ids) + 1
    assert twice.prompt_ids.count(word) == plain.prompt_ids.count(word) + 1


def test_a_text_is_never_cut_and_hidden_whole_without_its_text(family):
    whole = RequestBuilder(family.tokenizer, family).build(SEVEN, {}, 5)
    length = len(whole.prompt_ids)
    assert whole.uncond_ids == [family.mask_token_id] * length
    assert whole.response_mask == [1] * 5 and whole.new_tokens == 5 and whole.arguments == {}
    assert RequestBuilder(family.tokenizer, family, longest_text=length).build(SEVEN, {}, 5) == whole
    for limited in (family, None):
        builder = RequestBuilder(family.tokenizer, limited, longest_text=length - 1)
        with pytest.raises(ValueError, match=f"{length} tokens.*prompt_length={length - 1}.*none is cut"):
            builder.build(SEVEN, {}, 5)


def test_an_autoregressive_checkpoint_takes_texts_alone(family):
    builder = RequestBuilder(family.tokenizer, None)
    request = builder.build(SEVEN, {}, 5)
    assert request.prompt_ids == RequestBuilder(family.tokenizer, family).build(SEVEN, {}, 5).prompt_ids
    assert (request.uncond_ids, request.response_mask, request.arguments) == ([], [1] * 5, {})
    with pytest.raises(ValueError, match="texts alone"):
        builder.build(SEVEN, T2I, 17)


def test_padding_is_hidden_or_attended_to_as_the_family_says(tiny_digits, family):
    hidden = RequestBuilder(family.tokenizer, family).build(SEVEN, T2I, 17)
    other = load(tiny_digits / "model", AttendsToPadding)
    attended = RequestBuilder(other.tokenizer, other).build(SEVEN, T2I, 17)
    pad, length = family.token_id("[iPAD]"), family.text_length + 1
    assert pad not in hidden.prompt_ids
    assert attended.prompt_ids == [pad] * (length - len(hidden.prompt_ids)) + hidden.prompt_ids
    assert len(attended.uncond_ids) == length and attended.uncond_ids[-len(hidden.uncond_ids) :] == hidden.uncond_ids
    assert attended.arguments["uncond_ids"] == tuple(attended.uncond_ids) and attended.canvas.is_image


def test_rows_are_padded_on_the_left():
    tokens, mask = pad_left([(7, 8), (), (9,)], 2, 5)
    assert tokens.tolist() == [[7, 8], [5, 5], [5, 9]] and mask.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_the_grid_is_the_checkpoints_own_without_a_size(tiny_digits, family):
    image = SimpleNamespace(height=None, width=None, tokenizer_path=str(tiny_digits / "vq"))
    assert image_grid(image, family) is None
    image.height, image.width = 8, 16
    assert image_grid(image, family) == (4, 8) and image_grid(image, None) is None


# ---- the agent loop


class Serving:
    """A server manager that remembers its requests and lets a server answer them."""

    def __init__(self, server):
        self.server, self.asked = server, []

    async def generate(self, **request):
        self.asked.append(request)
        return await self.server.generate(**request)


def make_loop(folder, name, manager, *overrides):
    config = ranks.compose_config(folder, *overrides, name=name, folder_key=f"{name}_dir")
    trainer = SimpleNamespace(config=config)
    tokenizer = AutoTokenizer.from_pretrained(config.actor_rollout_ref.model.path)
    data = SimpleNamespace(config=config.data)
    return agent_loop.SeededSingleTurn(trainer, manager, tokenizer, data)


def digits_server(folder, *overrides):
    load_auto = "actor_rollout_ref.rollout.load_format=auto"
    config = ranks.compose_config(folder, load_auto, *overrides, name="digits", folder_key="digits_dir")
    return DiffusionServer(config.actor_rollout_ref.rollout, config.actor_rollout_ref.model, 0)


def run_loop(loop, messages, info):
    row = {"raw_prompt": messages, "extra_info": info, "index": 3, "session_id": 1, "global_steps": 2}
    return asyncio.run(asyncio.wait_for(loop.run({"temperature": 1.0}, **row), 120))


GUIDED = ("actor_rollout_ref.rollout.sampler.options.cfg_scale=1.5", "algorithm.estimation.cfg_scale=1.5")


def test_padding_that_is_attended_to_reaches_the_model_and_the_training_rows(tiny_digits):
    attended = "+actor_rollout_ref.model.override_config.attend_to_padding=true"
    server = digits_server(tiny_digits, GUIDED[0])
    seen = []

    def watch(module, args, kwargs):
        seen.append((args[0].clone(), kwargs.get("attention_mask")))

    server.model.register_forward_pre_hook(watch, with_kwargs=True)
    manager = Serving(server)
    output = run_loop(make_loop(tiny_digits, "digits", manager, *GUIDED, attended), SEVEN, T2I)
    pad = server.family.token_id("[iPAD]")
    length = server.family.text_length + 1
    assert len(output.prompt_ids) == length and output.prompt_ids[0] == pad
    assert output.extra_fields["uncond_ids"][:2] == [pad, pad] and len(output.extra_fields["uncond_ids"]) == length
    assert manager.asked[0]["prompt_ids"] == output.prompt_ids
    for tokens, mask in seen:
        assert tokens[0, :length].tolist() == output.prompt_ids
        assert tokens[1, :length].tolist() == output.extra_fields["uncond_ids"]
        assert mask is None or bool((mask == 1).all())
    assert output.response_mask == [1] * 16 + [0]


def test_a_token_that_the_family_fixes_in_an_answer_is_seen_and_not_learned(tiny_digits, monkeypatch):
    monkeypatch.setattr(agent_loop, "load_family", lambda model, _: load(model.path, ClosesAnswers))
    for sampler in ("name=emerge", "name=semi_autoregressive"):
        server = digits_server(tiny_digits, f"actor_rollout_ref.rollout.sampler.{sampler}")
        output = run_loop(make_loop(tiny_digits, "digits", Serving(server)), SEVEN, MMU)
        assert output.response_ids[-1] == server.family.token_id("<|eoi|>")
        assert output.response_mask == [1] * 16 + [0] and output.extra_fields["reveal_step"][-1] == -1
        assert server.family.mask_token_id not in output.response_ids
    with pytest.raises(ValueError, match="canvas_ids holds 3 tokens, not 17"):
        asyncio.run(server.generate("r", [1, 2], {}, canvas_ids=(1, 2, 3)))
    assert not CanvasRequest((1,)).is_image


def test_a_text_and_its_seed_are_those_of_the_row(tiny_run):
    class Echo:
        async def generate(self, **request):
            from verl.workers.rollout.replica import TokenOutput

            return TokenOutput(token_ids=[5] * 9, stop_reason="completed", extra_fields={"request": request})

    first = run_loop(make_loop(tiny_run, "quickstart", Echo()), [{"role": "user", "content": "1+2="}], None)
    assert len(first.response_ids) == 8 and first.response_mask == [1] * 8
    asked = first.extra_fields["request"]
    assert asked["prompt_ids"] == first.prompt_ids and "uncond_ids" not in first.extra_fields
    again = run_loop(make_loop(tiny_run, "quickstart", Echo()), [{"role": "user", "content": "1+2="}], {})
    assert again.extra_fields["request"]["sampling_params"] == asked["sampling_params"]
    guided = make_loop(tiny_run, "quickstart", Echo(), GUIDED[1])
    hidden = run_loop(guided, [{"role": "user", "content": "1+2="}], {}).extra_fields["uncond_ids"]
    assert torch.tensor(hidden).unique().numel() == 1 and len(hidden) == len(first.prompt_ids)
