"""The agent loop of the plugin's rollouts: one data row in, one seeded generation out, a text or an image."""

from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, _agent_loop_registry, register
from verl.utils.profiler import simple_timer

from maskgrpo_plugin.diffusion.estimators.plan import UNCOND_IDS
from maskgrpo_plugin.models.families import load_family
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.workers.rollout.requests import RequestBuilder, image_grid, request_seed


@dataclass(frozen=True)
class RunSettings:
    """What all completions of a run share.

    Attributes:
        requests: makes the requests.
        response_length: tokens of a text answer, and the most that are kept of any.
        seed: of the run's noise.
        guided: whether the training needs the prompts without their text.
    """

    requests: RequestBuilder
    response_length: int
    seed: int
    guided: bool

    @classmethod
    def read(cls, config: Any, data_config: Any, tokenizer: Any) -> "RunSettings":
        """The settings of a whole config."""
        model, rollout = config.actor_rollout_ref.model, config.actor_rollout_ref.rollout
        family = load_family(model, tokenizer) if model.model_type == "masked_diffusion" else None
        requests = RequestBuilder(
            tokenizer,
            family,
            grid=image_grid(rollout.image, family),
            template_kwargs=data_config.get("apply_chat_template_kwargs", {}),
            longest_text=rollout.prompt_length,
        )
        guided = (config.algorithm.get("estimation") or {}).get("cfg_scale", 0) > 0
        return cls(requests, rollout.response_length, rollout.seed, guided)


SINGLE_TURN = "maskgrpo_single_turn"


@register(SINGLE_TURN)
class SeededSingleTurn(AgentLoopBase):
    """One prompt, one completion, with the noise seeded by place in the run rather than by arrival.

    verl makes one agent loop per completion, all with one config: the settings are read once and kept with it, since
    each of a config's references takes OmegaConf half a millisecond.
    """

    _last: ClassVar[tuple[Any, Any, RunSettings] | None] = None  # config, tokenizer, and their settings

    def __init__(self, trainer_config: Any, server_manager: Any, tokenizer: Any, data_config: Any, **_: Any):
        self.server_manager, config, last = server_manager, trainer_config.config, self._last
        if last is None or last[0] is not config or last[1] is not tokenizer:
            last = (config, tokenizer, RunSettings.read(config, data_config.config, tokenizer))
            type(self)._last = last
        self.settings = last[2]

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Lay out the prompt, generate, and mark the generated tokens as response.

        Args:
            sampling_params: verl's sampling parameters.
            **kwargs: the data row, with `raw_prompt`, `index`, `session_id`, `global_steps`, and `extra_info`, whose
                `modality` says what is asked for.
        """
        extra_info = kwargs.get("extra_info") or {}
        settings = self.settings
        request = settings.requests.build(list(kwargs["raw_prompt"]), extra_info, settings.response_length)
        step, row, session = (int(kwargs.get(key, 0)) for key in ("global_steps", "index", "session_id"))
        seed = request_seed(settings.seed, step, row, session, request.prompt_ids)
        metrics: dict[str, Any] = {"num_preempted": -1}
        with simple_timer("generate_sequences", metrics):
            output = await self.server_manager.generate(
                request_id=uuid4().hex,
                prompt_ids=request.prompt_ids,
                sampling_params=sampling_params | {"seed": seed},
                **request.arguments,
            )
        response_ids = output.token_ids[: settings.response_length]
        extra_fields = output.extra_fields | {"turn_scores": [], "tool_rewards": []}
        if settings.guided:
            extra_fields[UNCOND_IDS] = request.uncond_ids
        return AgentLoopOutput(
            prompt_ids=request.prompt_ids,
            response_ids=response_ids,
            response_mask=request.response_mask[: len(response_ids)],
            num_turns=2,
            metrics=metrics,
            extra_fields=extra_fields,
        )


REGISTERS = (Registered(f"agent loop {SINGLE_TURN}", lambda: SINGLE_TURN in _agent_loop_registry),)
