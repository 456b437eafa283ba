"""The agent loop of the plugin's rollouts: chat prompt in, one seeded generation out."""

import zlib
from array import array
from typing import Any
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopOutput, register
from verl.utils.profiler import simple_timer

from maskgrpo_plugin.diffusion.remasking import combine_seed


def request_seed(run_seed: int, step: int, row: int, session: int, prompt_ids: list[int]) -> int:
    """Seed of one completion: a function of the run, the step, the data row, the completion's number and the prompt.

    Returns:
        A whole number from 0 below 2^63, the same in a resumed run and on any number of workers.
    """
    return combine_seed(run_seed, step, row, session, zlib.crc32(array("q", prompt_ids).tobytes()))


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
        """Render the chat, generate, and mark every generated token as response.

        Args:
            sampling_params: verl's sampling parameters.
            **kwargs: the data row, with `raw_prompt`, `index`, `session_id` and `global_steps`.
        """
        messages = list(kwargs["raw_prompt"])
        text = self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.apply_chat_template_kwargs
        )
        prompt_ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt_ids = self._cap_text_prompt_length(prompt_ids)
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
                request_id=uuid4().hex, prompt_ids=prompt_ids, sampling_params=sampling_params | {"seed": seed}
            )
        metrics["num_preempted"] = -1
        response_ids = output.token_ids[: self.rollout_config.response_length]
        return AgentLoopOutput(
            prompt_ids=prompt_ids,
            response_ids=response_ids,
            response_mask=[1] * len(response_ids),
            num_turns=2,
            metrics=metrics,
            extra_fields=output.extra_fields | {"turn_scores": [], "tool_rewards": []},
        )
