"""The agent loop of the plugin's rollouts: one data row in, one seeded generation out, a text or an image."""

from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, _agent_loop_registry, register
from verl.utils.profiler import simple_timer

from maskgrpo_plugin.diffusion.estimators.plan import UNCOND_IDS
from maskgrpo_plugin.models.families import load_family
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.workers.rollout.requests import RequestBuilder, image_grid, request_seed


@register("maskgrpo_single_turn")
class SeededSingleTurn(AgentLoopBase):
    """One prompt, one completion, with the noise seeded by place in the run rather than by arrival.

    verl makes one agent loop per completion, and each builds a tokenisation helper that a single turn does not need, so
    the construction is kept to the attributes that are read here.
    """

    def __init__(self, trainer_config: Any, server_manager: Any, tokenizer: Any, data_config: Any, **_: Any):
        self.config, self.server_manager = trainer_config.config, server_manager
        self.rollout_config = self.config.actor_rollout_ref.rollout
        model, family = self.config.actor_rollout_ref.model, None
        if model.model_type == "masked_diffusion":
            family = load_family(model, tokenizer)
        self.requests = RequestBuilder(
            tokenizer,
            family,
            grid=image_grid(self.rollout_config.image, family),
            template_kwargs=data_config.config.get("apply_chat_template_kwargs", {}),
            longest_text=self.rollout_config.prompt_length,
        )

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        """Lay out the prompt, generate, and mark the generated tokens as response.

        Args:
            sampling_params: verl's sampling parameters.
            **kwargs: the data row, with `raw_prompt`, `index`, `session_id`, `global_steps`, and `extra_info`, whose
                `modality` says what is asked for.
        """
        extra_info = kwargs.get("extra_info") or {}
        request = self.requests.build(list(kwargs["raw_prompt"]), extra_info, self.rollout_config.response_length)
        step, row, session = (int(kwargs.get(key, 0)) for key in ("global_steps", "index", "session_id"))
        seed = request_seed(self.rollout_config.seed, step, row, session, request.prompt_ids)
        metrics: dict[str, Any] = {"num_preempted": -1}
        with simple_timer("generate_sequences", metrics):
            output = await self.server_manager.generate(
                request_id=uuid4().hex,
                prompt_ids=request.prompt_ids,
                sampling_params=sampling_params | {"seed": seed},
                **request.arguments,
            )
        response_ids = output.token_ids[: self.rollout_config.response_length]
        extra_fields = output.extra_fields | {"turn_scores": [], "tool_rewards": []}
        if (self.config.algorithm.get("estimation") or {}).get("cfg_scale", 0) > 0:
            extra_fields[UNCOND_IDS] = request.uncond_ids
        return AgentLoopOutput(
            prompt_ids=request.prompt_ids,
            response_ids=response_ids,
            response_mask=request.response_mask[: len(response_ids)],
            num_turns=2,
            metrics=metrics,
            extra_fields=extra_fields,
        )


REGISTERS = (Registered("agent loop maskgrpo_single_turn", lambda: "maskgrpo_single_turn" in _agent_loop_registry),)
