"""Checks of the rollout section's numbers, and of verl's keys that the plugin's servers do not honour."""

from omegaconf import DictConfig
from verl.utils.torch_dtypes import PrecisionType

from maskgrpo_plugin.diffusion.random import LARGEST_SEED
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.imports import check_class
from maskgrpo_plugin.tables import (
    COUNT,
    COUNT_OR_NULL,
    NOT_NEGATIVE,
    Ignored,
    Range,
    check_choices,
    check_ignored,
    check_ranges,
)

ROLLOUT = "actor_rollout_ref.rollout"
NUMBERS = {
    "temperature": NOT_NEGATIVE,
    "val_kwargs.temperature": NOT_NEGATIVE,
    "seed": Range(0, LARGEST_SEED),
    "prompt_length": COUNT,
    "response_length": COUNT,
    "max_num_seqs": COUNT,
    "image.height": COUNT_OR_NULL,
    "image.width": COUNT_OR_NULL,
    "image.contact_sheet_rows": Range(0),
    "checkpoint_engine.update_weights_bucket_megabytes": COUNT,
}
CHOICES = {"load_format": ("auto", "dummy"), "mode": ("async",), "trace.backend": (None, "mlflow", "weave")}
ALL_TOKENS = "the samplers draw from all tokens"
OF_SAMPLER = f"those of block-wise samplers are {ROLLOUT}.sampler.options.top_k and top_p"
OF_OTHER_SERVERS = "the plugin's servers have no such setting"
ONE_TURN = "the plugin's agent loop has one turn"
IGNORED = {
    "top_p": Ignored((1.0,), OF_SAMPLER),
    "top_k": Ignored((-1, 0), OF_SAMPLER),
    "val_kwargs.top_p": Ignored((1.0,), OF_SAMPLER),
    "val_kwargs.top_k": Ignored((-1, 0), OF_SAMPLER),
    "repetition_penalty": Ignored((1.0,), ALL_TOKENS),
    "do_sample": Ignored((True,), f"a temperature of 0 is greedy: {ROLLOUT}.temperature"),
    "ignore_eos": Ignored((False,), "sampler.options.early_stop=false writes on after an end token"),
    "over_sample_rate": Ignored((0.0,), OF_OTHER_SERVERS),
    "multi_turn.enable": Ignored((False,), ONE_TURN),
    "multi_turn.tool_config_path": Ignored((None,), ONE_TURN),
    "multi_turn.function_tool_path": Ignored((None,), ONE_TURN),
    "multi_turn.max_assistant_turns": Ignored((None, 1), ONE_TURN),
    "multi_turn.max_user_turns": Ignored((None, 1), ONE_TURN),
    "multi_turn.num_repeat_rollouts": Ignored((None,), ONE_TURN),
    "nnodes": Ignored((0,), "the rollout shares the devices of the actor"),
    "expert_parallel_size": Ignored((1,), "each rank has its own server"),
    "moe_tensor_parallel_size": Ignored((1,), "each rank has its own server"),
    "max_model_len": Ignored((None,), "data.max_prompt_length and data.max_response_length say how long a row is"),
    "quantization": Ignored((None,), OF_OTHER_SERVERS),
    "quantization_config_file": Ignored((None,), OF_OTHER_SERVERS),
    "enable_rollout_routing_replay": Ignored((False,), OF_OTHER_SERVERS),
    "moe_load_balance_metrics_interval": Ignored((0,), OF_OTHER_SERVERS),
    "multi_stage_wake_up": Ignored((False,), OF_OTHER_SERVERS),
    "disaggregation.enabled": Ignored((False,), OF_OTHER_SERVERS),
    "prometheus.enable": Ignored((False,), "the servers' numbers are in the run's log, as rollout/…"),
    "router_config_path": Ignored((None,), OF_OTHER_SERVERS),
    "limit_images": Ignored((None,), OF_OTHER_SERVERS),
    "engine_kwargs": Ignored(
        ({"vllm": {}, "sglang": {}, "trtllm": {}}, {}), "sampler.options holds the sampler's, the rest is vLLM's"
    ),
    "agent.agent_loop_config_path": Ignored((None,), "other agent loops are not used"),
    "agent.custom_async_server.path": Ignored((None,), OF_OTHER_SERVERS),
    "checkpoint_engine.backend": Ignored(("naive",), "verl takes naive for a rollout on the actor's devices"),
}


IGNORED_DATA = {name: Ignored((None,), ONE_TURN) for name in ("tool_config_path", "function_tool_path")}


def check_rollout_settings(config: DictConfig) -> None:
    """Check the numbers of the rollout section, and that no setting asks for what the plugin's servers do not do.

    Raises:
        OptionError: the first value that cannot work, or that has no effect.
    """
    check_ranges(config, ROLLOUT, NUMBERS)
    check_choices(config, ROLLOUT, CHOICES)
    check_ignored(config, ROLLOUT, IGNORED)
    check_ignored(config, "data", IGNORED_DATA)
    rollout = config.actor_rollout_ref.rollout
    if rollout.temperature == 0 and rollout.n > 1:
        allowed = f"all {rollout.n} completions of a prompt would be equal, without an advantage; use more than 0"
        raise OptionError(f"{ROLLOUT}.temperature", rollout.temperature, allowed)
    try:
        PrecisionType.to_dtype(rollout.dtype)
    except RuntimeError:
        raise OptionError(f"{ROLLOUT}.dtype", rollout.dtype, "allowed: float32, bfloat16, float16") from None
    _check_lengths(config)
    check_class(f"{ROLLOUT}.agent.agent_loop_manager_class", rollout.agent.agent_loop_manager_class)


def _check_lengths(config: DictConfig) -> None:
    """Prompt and response of the rollout fit what training makes room for."""
    rollout = config.actor_rollout_ref.rollout
    for name, of_data in (("prompt_length", "max_prompt_length"), ("response_length", "max_response_length")):
        if rollout[name] > config.data[of_data]:
            allowed = f"it is longer than data.{of_data}={config.data[of_data]}, by which training makes room"
            raise OptionError(f"{ROLLOUT}.{name}", rollout[name], allowed)
