"""Ray servers that hold a rollout model: weight sync, sleep and wake, batched generation."""

import logging
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name, get_torch_device
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.rollout.replica import TokenOutput

from maskgrpo_plugin.diffusion.samplers import build_sampler
from maskgrpo_plugin.models.special_tokens import stop_token_ids
from maskgrpo_plugin.workers.rollout.batching import DynamicBatcher, Request
from maskgrpo_plugin.workers.rollout.weight_transfer import Bucket, read_bucket

logger = logging.getLogger(__name__)


class RolloutServer:
    """What both servers share: the model, its weights' life, and the queue.

    Args:
        config: verl's rollout section.
        model_config: verl's model section.
        replica_rank: number of the replica, for logs.
    """

    def __init__(self, config: Any, model_config: Any, replica_rank: int):
        self.config = omega_conf_to_dataclass(config)
        self.model_config = omega_conf_to_dataclass(model_config)
        self.replica_rank = replica_rank
        self.device = torch.device("cpu" if get_device_name() == "cpu" else f"{get_device_name()}:0")
        self.tokenizer = self.model_config.tokenizer
        self.stop_token_ids = stop_token_ids(self.tokenizer)
        self.pad_token_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        self.global_steps: int | None = None
        self.received: set[str] = set()
        self.model: Any = self._load_model()
        self.has_weights = self.config.load_format != "dummy"
        self.batcher = DynamicBatcher(
            self._run,
            max_batch=self.config.max_num_seqs,
            max_wait_s=self.config.max_wait_ms / 1000,
            quiet_s=self.config.quiet_ms / 1000,
        )

    def _load_model(self) -> torch.nn.Module:
        dtype = PrecisionType.to_dtype(self.config.dtype)
        if self.config.load_format == "dummy":
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(self.model_config.hf_config, dtype=dtype)
            model = model.to_empty(device=self.device)
            model.tie_weights()
        else:
            model = AutoModelForCausalLM.from_pretrained(
                self.model_config.local_path, config=self.model_config.hf_config, dtype=dtype
            ).to(self.device)
        return model.eval().requires_grad_(False)

    async def generate(
        self,
        request_id: str,
        prompt_ids: list[int],
        sampling_params: dict[str, Any],
        image_data: list[Any] | None = None,
        video_data: list[Any] | None = None,
        **_: Any,
    ) -> TokenOutput:
        """Generate one response.

        Args:
            request_id: the caller's id; seeds the noise where `sampling_params` has no `seed`.
            prompt_ids: prompt tokens.
            sampling_params: verl's (`temperature`, optional `max_tokens`) and an optional whole-number `seed`; the
                same prompt, settings and seed give the same response whatever else is in the batch.

        Returns:
            Response tokens; `extra_fields` holds `reveal_step`, `model_calls` and `global_steps`.
        """
        seed = sampling_params.get("seed")
        seed = zlib.crc32(str(request_id).encode()) if seed is None else int(seed)
        kind = (float(sampling_params.get("temperature", self.config.temperature)),)
        output = await self.batcher.submit(list(prompt_ids), seed=seed, kind=kind)
        output.extra_fields["global_steps"] = self.global_steps
        return output

    def _run(self, batch: Sequence[Request]) -> list[TokenOutput]:
        if not self.has_weights:
            raise RuntimeError(f"rollout replica {self.replica_rank} was asked to generate before it had weights")
        width = max(len(request.prompt_ids) for request in batch)
        input_ids = torch.full((len(batch), width), self.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, request in enumerate(batch):
            input_ids[row, width - len(request.prompt_ids) :] = torch.tensor(request.prompt_ids)
            attention_mask[row, width - len(request.prompt_ids) :] = 1
        padded = bool((attention_mask == 0).any())
        generators = [torch.Generator(self.device).manual_seed(request.seed) for request in batch]
        temperature: float = batch[0].kind[0]  # type: ignore[index]
        with torch.inference_mode():
            outputs = self._generate(
                input_ids.to(self.device),
                attention_mask.to(self.device) if padded else None,
                generators,
                temperature,
            )
        self.batcher.metrics.tokens += sum(self._answer_length(output.token_ids) for output in outputs)
        return outputs

    def _answer_length(self, token_ids: list[int]) -> int:
        """Tokens up to and with the first end token."""
        for index, token in enumerate(token_ids):
            if token in self.stop_token_ids:
                return index + 1
        return len(token_ids)

    def _generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        generators: list[torch.Generator],
        temperature: float,
    ) -> list[TokenOutput]:
        raise NotImplementedError

    async def receive_bucket(self, bucket: Bucket) -> None:
        """Copy one bucket of the actor's weights; the last one lets generation run again.

        Raises:
            KeyError: a tensor that the model does not have.
            RuntimeError: some of the model's parameters were not sent.
        """
        await self.batcher.pause()
        targets = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

        def copy(name: str, tensor: torch.Tensor) -> None:
            if name not in targets:
                raise KeyError(f"weight sync sent {name!r}, which the rollout model does not have")
            targets[name].copy_(tensor)
            self.received.add(name)

        with torch.no_grad():
            read_bucket(bucket, copy)
        if not bucket.is_last:
            return
        tied = set(getattr(self.model, "all_tied_weights_keys", None) or {})
        missing = {name for name, _ in self.model.named_parameters()} - self.received - tied
        self.received.clear()
        if missing:
            raise RuntimeError(f"weight sync left out {len(missing)} parameters, among them {sorted(missing)[:5]}")
        self.has_weights = True
        self.batcher.resume()

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Take device memory for the weights again; on a GPU they are valid after the next weight sync."""
        if next(self.model.parameters()).is_meta:
            self.model.to_empty(device=self.device)
            self.model.tie_weights()

    async def sleep(self) -> None:
        """Wait for the running batch, then give the weights' device memory back (nothing to give back on the CPU)."""
        await self.batcher.pause()
        if self.device.type != "cpu":
            self.model.to("meta")
            self.has_weights = False
            get_torch_device().empty_cache()

    async def set_global_steps(self, global_steps: int) -> None:
        """Remember which step's weights the model holds; told with every response."""
        self.global_steps = global_steps

    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Answer every waiting request as aborted and hold new ones back until `resume_generation`."""
        for request in self.batcher.abort():
            if not request.future.done():
                request.future.set_result(TokenOutput(token_ids=[], stop_reason="aborted"))
        await self.batcher.pause()

    async def resume_generation(self) -> None:
        """Serve requests again after an abort."""
        self.batcher.resume()

    async def clear_kv_cache(self) -> None:
        """Nothing is kept between requests."""

    async def release_kv_cache(self) -> None:
        """Nothing is kept between requests."""

    async def resume_kv_cache(self) -> None:
        """Nothing is kept between requests."""

    async def start_profile(self, **_: Any) -> None:
        """Profiling of the servers is not offered."""

    async def stop_profile(self) -> None:
        """Profiling of the servers is not offered."""

    async def pop_metrics(self) -> dict[str, float]:
        """Throughput since the last call; see `BatchingMetrics.summary`."""
        return self.batcher.pop_metrics()


class DiffusionServer(RolloutServer):
    """Serves a masked diffusion model with the sampler of `rollout.sampler`."""

    def _generate(self, input_ids, attention_mask, generators, temperature):
        sampler = build_sampler(
            self.config.sampler.name,
            **self.config.sampler.options(
                response_length=self.config.response_length,
                temperature=temperature,
                stop_token_ids=self.stop_token_ids,
            ),
        )
        output = sampler.generate(
            self.model,
            input_ids,
            attention_mask,
            mask_token_id=self.model_config.hf_config.mask_token_id,
            generator=generators,
        )
        self.batcher.metrics.model_calls += int(output.model_calls)
        row_calls = output.row_model_calls.tolist()
        self.batcher.metrics.row_model_calls += sum(row_calls)
        start = input_ids.shape[1]
        responses = output.sequences[:, start:].tolist()
        reveals = output.reveal_step[:, start:].tolist()
        return [
            TokenOutput(
                token_ids=response,
                stop_reason="completed",
                extra_fields={"reveal_step": reveal, "model_calls": calls},
            )
            for response, reveal, calls in zip(responses, reveals, row_calls, strict=True)
        ]


class TransformersServer(RolloutServer):
    """Serves an autoregressive transformers model by ancestral sampling with a key-value cache."""

    def _generate(self, input_ids, attention_mask, generators, temperature):
        batch = input_ids.shape[0]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        stops = torch.tensor(self.stop_token_ids, device=self.device)
        alive = torch.ones(batch, dtype=torch.bool, device=self.device)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        responses: list[list[int]] = [[] for _ in range(batch)]
        cache, tokens = None, input_ids
        for _ in range(self.config.response_length):
            output = self.model(
                input_ids=tokens,
                attention_mask=attention_mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            self.batcher.metrics.model_calls += 1
            self.batcher.metrics.row_model_calls += int(alive.sum())
            cache = output.past_key_values
            chosen = self._choose(output.logits[:, -1].float(), generators, temperature, alive)
            for row in alive.nonzero().flatten().tolist():
                responses[row].append(int(chosen[row]))
            alive &= ~torch.isin(chosen, stops)
            if not alive.any():
                break
            tokens = chosen.unsqueeze(-1)
            positions = positions[:, -1:] + 1
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(batch, 1)], dim=-1)
        return [
            TokenOutput(token_ids=response, stop_reason="completed", extra_fields={"model_calls": len(response)})
            for response in responses
        ]

    @staticmethod
    def _choose(
        logits: torch.Tensor, generators: list[torch.Generator], temperature: float, alive: torch.Tensor
    ) -> torch.Tensor:
        """Greedy at temperature 0, else one draw a row from that row's own generator; (B, V) -> (B,)."""
        if temperature == 0:
            return logits.argmax(-1)
        probabilities = torch.softmax(logits / temperature, dim=-1)
        draws = [
            torch.multinomial(row, 1, generator=generator) if living else row.new_zeros(1, dtype=torch.long)
            for row, generator, living in zip(probabilities, generators, alive.tolist(), strict=True)
        ]
        return torch.cat(draws)
