"""The rollout servers of an evaluation: one in this process, or several as Ray actors with a device each."""

import itertools
from typing import Any

from transformers import AutoConfig
from verl.utils.device import get_device_name
from verl.workers.config import HFModelConfig
from verl.workers.rollout.replica import TokenOutput

from maskgrpo_plugin.config import DiffusionRolloutConfig, ImageSettings, SamplerSettings
from maskgrpo_plugin.models.registry import MODELS
from maskgrpo_plugin.workers.platform import worker_environment
from maskgrpo_plugin.workers.rollout.server import DiffusionServer, RolloutServer, server_actor
from maskgrpo_plugin.workers.rollout.transformers_server import TransformersServer

_OPEN_REQUESTS = 10_000


def is_diffusion(path: str) -> bool:
    """Whether the checkpoint at `path` is a masked diffusion model; others are taken as autoregressive."""
    return AutoConfig.from_pretrained(path).model_type in MODELS


def load_model_config(path: str) -> HFModelConfig:
    """verl's model section of a transformers folder or hub name, with its config and tokenizer."""
    return HFModelConfig(path=path, override_config={"attn_implementation": "sdpa"})


def rollout_config(
    sampler: SamplerSettings,
    *,
    response_length: int,
    temperature: float,
    batch_size: int,
    dtype: str | None = None,
    image: ImageSettings | None = None,
) -> DiffusionRolloutConfig:
    """The rollout section of servers that load their weights themselves.

    Args:
        sampler: of a diffusion model; an autoregressive one does not read it.
        response_length: tokens of a text response.
        temperature: 0 for greedy.
        batch_size: largest number of requests per batch.
        dtype: torch's name of one; None: float32 on the CPU, else bfloat16.
        image: of models that draw.
    """
    return DiffusionRolloutConfig(
        name="masked_diffusion",
        load_format="auto",
        dtype=dtype or ("float32" if get_device_name() == "cpu" else "bfloat16"),
        temperature=temperature,
        response_length=response_length,
        max_num_seqs=batch_size,
        tensor_model_parallel_size=1,
        sampler=sampler,
        image=image or ImageSettings(),
    )


class ServerPool:
    """Servers of one model; requests take turns between them.

    Args:
        config: the rollout section.
        model_config: the model section.
        replicas: 1 serves in this process; more are Ray actors, each with a GPU (on the CPU: a logical CPU).
    """

    def __init__(self, config: DiffusionRolloutConfig, model_config: HFModelConfig, replicas: int = 1):
        kind: type[RolloutServer] = DiffusionServer if is_diffusion(model_config.path) else TransformersServer
        self._remote = replicas > 1
        self._servers: list[Any]
        if self._remote:
            resources = {"num_cpus": 1} if get_device_name() == "cpu" else {"num_cpus": 1, "num_gpus": 1}
            environment = {"env_vars": worker_environment()}
            actor = server_actor(kind).options(max_concurrency=_OPEN_REQUESTS, runtime_env=environment, **resources)
            self._servers = [actor.remote(config, model_config, replica) for replica in range(replicas)]
        else:
            self._servers = [kind(config, model_config, 0)]
        self._turn = itertools.cycle(self._servers)

    async def reconfigure(self, config: DiffusionRolloutConfig) -> None:
        """Serve by another rollout section; nothing may be under way."""
        for server in self._servers:
            await (server.reconfigure.remote(config) if self._remote else server.reconfigure(config))

    async def generate(self, **request: Any) -> TokenOutput:
        """One response; see `RolloutServer.generate`."""
        server = next(self._turn)
        return await (server.generate.remote(**request) if self._remote else server.generate(**request))
