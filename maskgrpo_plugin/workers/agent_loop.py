"""The agent loop of the plugin's rollouts: chat prompt in, one seeded generation out, a text or an image."""

import os
import zlib
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any
from uuid import uuid4

from transformers import AutoConfig
from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, _agent_loop_registry, register
from verl.utils.profiler import simple_timer

from maskgrpo_plugin.diffusion.estimators.plan import UNCOND_IDS
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.models.families import Family, ImageFamily, Prompt, build_family
from maskgrpo_plugin.models.image_tokenizers import image_tokenizer_config
from maskgrpo_plugin.registry import Registered


def request_seed(run_seed: int, step: int, row: int, session: int, prompt_ids: list[int]) -> int:
    """Seed of one completion: a function of the run, the step, the data row, the completion's number and the prompt.

    Returns:
        A whole number from 0 below 2^63, the same in a resumed run and on any number of workers.
    """
    return combine_seed(run_seed, step, row, session, zlib.crc32(array("q", prompt_ids).tobytes()))


MODALITIES = ("text", "t2i", "mmu")


@lru_cache(maxsize=4)
def load_family(path: str, tokenizer: Any) -> Family:
    """The family of the checkpoint at `path` with its tokenizer; kept, since every completion asks for it."""
    return build_family(AutoConfig.from_pretrained(path), tokenizer)


def build_prompt(
    family: Family,
    messages: list[dict[str, str]],
    extra_info: Mapping[str, Any],
    response_length: int,
    grid: tuple[int, int] | None = None,
) -> Prompt:
    """The prompt of one data row.

    Args:
        family: the checkpoint's family.
        messages: the conversation; for an image its last message is the text to draw.
        extra_info: of the row; `modality` is `text` (default), `t2i`, or `mmu` with the image's codes in `image_codes`.
        response_length: tokens of a text answer.
        grid: rows and columns of image tokens; None: the checkpoint's square.

    Raises:
        ValueError: an unknown modality, one that the family does not have, or a prompt that does not fit it.
    """
    modality = extra_info.get("modality") or "text"
    if modality not in MODALITIES:
        raise ValueError(f"extra_info.modality={modality!r}: allowed are {', '.join(MODALITIES)}")
    if modality == "text":
        return family.text_to_text(messages, response_length)
    if not isinstance(family, ImageFamily):
        raise ValueError(f"extra_info.modality={modality!r}: models of the family {family.name!r} have no images")
    if modality == "t2i":
        return family.text_to_image(str(messages[-1]["content"]), grid)
    return family.understanding([int(code) for code in extra_info["image_codes"]], messages, response_length)


def render_chat(tokenizer: Any, messages: Sequence[Mapping[str, str]], **template_kwargs: Any) -> list[int]:
    """Token ids of a conversation by the tokenizer's chat template, up to the assistant's turn."""
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **template_kwargs)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def image_request(prompt: Prompt) -> dict[str, list[int]]:
    """What a rollout server's `generate` takes for an image besides the prompt's tokens."""
    return {
        "canvas_ids": list(prompt.response_ids),
        "uncond_ids": visible(prompt.uncond_ids, prompt.uncond_mask),
    }


@register("maskgrpo_single_turn")
class SeededSingleTurn(AgentLoopBase):
    """One prompt, one completion, with the noise seeded by place in the run rather than by arrival.

    verl makes an agent loop a completion and each builds a tokenisation helper that a single turn does not need, so
    the construction is kept to the attributes that are read here.
    """

    def __init__(self, trainer_config: Any, server_manager: Any, tokenizer: Any, data_config: Any, **_: Any):
        self.config = trainer_config.config
        self.rollout_config = self.config.actor_rollout_ref.rollout
        self.server_manager = server_manager
        self.tokenizer = tokenizer
        self.apply_chat_template_kwargs = data_config.config.get("apply_chat_template_kwargs", {})

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Render the prompt, generate, and mark every generated token as response.

        Args:
            sampling_params: verl's sampling parameters.
            **kwargs: the data row, with `raw_prompt`, `index`, `session_id`, `global_steps`, and `extra_info`, whose
                `modality` says whether an image is asked for.
        """
        messages = list(kwargs["raw_prompt"])
        extra_info = kwargs.get("extra_info") or {}
        request: dict[str, Any] = {}
        fixed_mask: list[int] | None = None
        uncond_ids: list[int] = []
        if (extra_info.get("modality") or "text") == "text":
            prompt_ids = self._render_chat(messages)
        else:
            prompt = self._image_prompt(messages, extra_info)
            prompt_ids = visible(prompt.prompt_ids, prompt.prompt_mask)
            if extra_info["modality"] == "t2i":
                fixed_mask = list(prompt.response_mask)
                request = image_request(prompt)
                uncond_ids = request["uncond_ids"]
        seed = request_seed(
            self.rollout_config.seed,
            int(kwargs.get("global_steps", 0)),
            int(kwargs.get("index", 0)),
            int(kwargs.get("session_id", 0)),
            prompt_ids,
        )
        metrics: dict[str, Any] = {}
        with simple_timer("generate_sequences", metrics):
            output = await self.server_manager.generate(
                request_id=uuid4().hex,
                prompt_ids=prompt_ids,
                sampling_params=sampling_params | {"seed": seed},
                **request,
            )
        metrics["num_preempted"] = -1
        response_ids = output.token_ids[: self.rollout_config.response_length]
        extra_fields = output.extra_fields | {"turn_scores": [], "tool_rewards": []}
        estimation = self.config.algorithm.get("estimation") or {}
        if estimation.get("cfg_scale", 0) > 0:
            extra_fields[UNCOND_IDS] = uncond_ids or self._hidden_prompt(len(prompt_ids))
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            response_mask=fixed_mask or [1] * len(response_ids),
            num_turns=2,
            metrics=metrics,
            extra_fields=extra_fields,
        )

    def _hidden_prompt(self, length: int) -> list[int]:
        """A text prompt without its text: as long, and masked, as in the text sampler's guidance."""
        return [self._family().mask_token_id] * length

    def _family(self) -> Family:
        return load_family(os.path.expanduser(self.config.actor_rollout_ref.model.path), self.tokenizer)

    def _render_chat(self, messages: list[dict[str, str]]) -> list[int]:
        return self._cap_text_prompt_length(render_chat(self.tokenizer, messages, **self.apply_chat_template_kwargs))

    def _image_prompt(self, messages: list[dict[str, str]], extra_info: Mapping[str, Any]) -> Prompt:
        family = self._family()
        length = self.rollout_config.response_length
        return build_prompt(family, messages, extra_info, length, image_grid(self.rollout_config.image, family))


_image_tokenizer_config = lru_cache(maxsize=4)(image_tokenizer_config)


def image_grid(image: Any, family: Family) -> tuple[int, int] | None:
    """Rows and columns of image tokens that `rollout.image` asks for; None: the checkpoint's square."""
    if image.height is None or not isinstance(family, ImageFamily):
        return None
    return family.image_grid(_image_tokenizer_config(image.tokenizer_path), image.height, image.width)


def visible(ids: Sequence[int], mask: Sequence[int]) -> list[int]:
    """The tokens that are no padding."""
    return [token for token, kept in zip(ids, mask, strict=True) if kept]


REGISTERS = (Registered("agent loop maskgrpo_single_turn", lambda: "maskgrpo_single_turn" in _agent_loop_registry),)
