"""Ray servers that hold a rollout model: weight sync, sleep and wake, batched generation."""

import logging
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name, get_torch_device
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.rollout.replica import TokenOutput

from maskgrpo_plugin.diffusion.samplers import Sampler, SemiAutoregressiveSampler, build_sampler
from maskgrpo_plugin.models.families import build_family
from maskgrpo_plugin.models.special_tokens import stop_token_ids
from maskgrpo_plugin.workers.rollout.images import ImageDecoder, ImageRequest, pad_left
from maskgrpo_plugin.workers.rollout.model_weights import ModelWeights, allocate_parameters, serves_adapter
from maskgrpo_plugin.workers.rollout.request_queue import Batch, DynamicBatcher, Request
from maskgrpo_plugin.workers.rollout.weight_transfer import Bucket

logger = logging.getLogger(__name__)


def compile_layers(model: Any) -> None:
    """Compile each of the model's repeated layers (`_no_split_modules`) by itself, for any shape, when first called."""
    for module in model.modules():
        if type(module).__name__ in model._no_split_modules:
            module.compile(dynamic=True)


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
        self.model: Any = self._load_model()
        self.weights = ModelWeights(
            self.model,
            loaded=self.config.load_format != "dummy",
            outlives_sleep=serves_adapter(self.model_config),
        )
        self.batcher = DynamicBatcher(
            self._run,
            max_batch=self.config.max_num_seqs,
            max_wait_s=self.config.max_wait_ms / 1000,
            quiet_s=self.config.quiet_ms / 1000,
        )

    @property
    def has_weights(self) -> bool:
        """Whether the model can generate."""
        return self.weights.ready

    def _load_model(self) -> torch.nn.Module:
        dtype = PrecisionType.to_dtype(self.config.dtype)
        if self.config.load_format == "dummy":
            with init_empty_weights(include_buffers=False):
                model = AutoModelForCausalLM.from_config(self.model_config.hf_config, dtype=dtype)
            allocate_parameters(model, self.device)
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
        canvas_ids: Sequence[int] | None = None,
        uncond_ids: Sequence[int] = (),
        **_: Any,
    ) -> TokenOutput:
        """Generate one response.

        Args:
            request_id: the caller's id; seeds the noise where `sampling_params` has no `seed`.
            prompt_ids: prompt tokens.
            sampling_params: verl's (`temperature`, optional `max_tokens`) and an optional whole-number `seed`; the
                same prompt, settings and seed give the same response whatever else is in the batch.
            canvas_ids: for an image, the response's tokens with mask tokens where the image goes.
            uncond_ids: for an image under guidance, the prompt without its text.

        Returns:
            Response tokens; `extra_fields` holds `reveal_step`, `model_calls` and `global_steps`, and for an image
            `image` (H, W, 3) uint8 where the server has an image tokenizer.
        """
        seed = sampling_params.get("seed")
        seed = zlib.crc32(str(request_id).encode()) if seed is None else int(seed)
        image = None if canvas_ids is None else ImageRequest(tuple(canvas_ids), tuple(uncond_ids))
        temperature = float(sampling_params.get("temperature", self.config.temperature))
        kind = (temperature, 0 if image is None else len(image.canvas_ids))
        output = await self.batcher.submit(list(prompt_ids), seed=seed, kind=kind, payload=image)
        output.extra_fields["global_steps"] = self.global_steps
        return output

    def _run(self, batch: Batch) -> None:
        if not self.has_weights:
            raise RuntimeError(f"rollout replica {self.replica_rank} was asked to generate before it had weights")
        with torch.inference_mode():
            self._generate(batch)

    def _answer(self, batch: Batch, request: Request, output: TokenOutput) -> None:
        self.batcher.metrics.tokens += self._answer_length(output.token_ids)
        batch.answer(request, output)

    def _inputs(self, requests: Sequence[Request]) -> tuple[torch.Tensor, torch.Tensor | None, list[torch.Generator]]:
        """Prompts (B, P), padded on the left, their mask where there is padding, and each row's noise."""
        width = max(max(len(r.prompt_ids), len(r.payload.uncond_ids) if r.payload else 0) for r in requests)
        input_ids, attention_mask = pad_left([tuple(r.prompt_ids) for r in requests], width, self.pad_token_id)
        padded = bool((attention_mask == 0).any())
        generators = [torch.Generator(self.device).manual_seed(request.seed) for request in requests]
        return input_ids.to(self.device), attention_mask.to(self.device) if padded else None, generators

    def _answer_length(self, token_ids: list[int]) -> int:
        """Tokens up to and with the first end token."""
        for index, token in enumerate(token_ids):
            if token in self.stop_token_ids:
                return index + 1
        return len(token_ids)

    def _generate(self, batch: Batch) -> None:
        """Answer every request of the batch."""
        raise NotImplementedError

    async def receive_bucket(
        self, bucket: Bucket, peft_config: dict[str, Any] | None = None, base_sync_done: bool = True
    ) -> None:
        """Copy one bucket of the actor's weights; the one that completes them lets generation run again.

        Args:
            bucket: as delivered.
            peft_config, base_sync_done: verl's, see `ModelWeights.receive`, also for the errors.
        """
        await self.batcher.pause()
        if self.weights.receive(bucket, peft_config, base_sync_done):
            self.batcher.resume()

    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Take device memory for the weights again. Those under a LoRA adapter come back from host memory with their
        values, others are valid after the next weight sync.
        """
        self.weights.restore(self.device)

    async def sleep(self) -> None:
        """Wait for the running batch, then give the weights' device memory back (nothing to give back on the CPU, nor
        with `rollout.free_cache_engine=false`).
        """
        await self.batcher.pause()
        if self.device.type != "cpu" and self.config.free_cache_engine:
            self.weights.release()
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

    async def reconfigure(self, config: Any) -> None:
        """Serve by another rollout section, such as one with another length or sampler; the weights stay."""
        await self.batcher.pause()
        self.config = omega_conf_to_dataclass(config)
        self.batcher.resume()

    async def pop_metrics(self) -> dict[str, float]:
        """Throughput since the last call; see `BatchingMetrics.summary`."""
        return self.batcher.pop_metrics()


class DiffusionServer(RolloutServer):
    """Serves a masked diffusion model with the sampler of `rollout.sampler`: text, and images of families with them."""

    def __init__(self, config: Any, model_config: Any, replica_rank: int):
        super().__init__(config, model_config, replica_rank)
        family: Any = build_family(self.model_config.hf_config, self.tokenizer)
        self.family = family
        if self.config.compile:
            compile_layers(self.model)
        self.image_decoder: Any = None
        if self.config.image.tokenizer_path:
            self.image_decoder = ImageDecoder(self.config.image.tokenizer_path, family, self.device)
            self.grid = self.config.image.grid(self.family, self.image_decoder.model.config)

    def _generate(self, batch: Batch) -> None:
        options = self.config.sampler.options(
            response_length=self.config.response_length,
            temperature=batch.kind[0],  # type: ignore[index]
            stop_token_ids=self.stop_token_ids,
        )
        if batch.requests[0].payload is not None:
            options["vocab_slice"] = self.family.image.vocab_slice
        sampler = build_sampler(self.config.sampler.name, **options)
        if isinstance(sampler, SemiAutoregressiveSampler):
            self._generate_blocks(batch, sampler)
        else:
            self._generate_whole(batch, sampler)

    def _generate_blocks(self, batch: Batch, sampler: SemiAutoregressiveSampler) -> None:
        """Decode block by block; rows that end are answered, and waiting requests take their places."""
        mask_token_id = self.family.mask_token_id
        decoder = sampler.decoder(self.model, mask_token_id=mask_token_id, pad_token_id=self.pad_token_id)
        requests: dict[int, Request] = {}
        joining = batch.requests
        while joining or decoder.running:
            if joining:
                input_ids, attention_mask, generators = self._inputs(joining)
                length = sampler.response_length
                tokens = torch.nn.functional.pad(input_ids, (0, length), value=mask_token_id)
                if attention_mask is not None:
                    attention_mask = torch.nn.functional.pad(attention_mask, (0, length), value=1)
                numbers = decoder.join(tokens, attention_mask, generators)
                requests.update(zip(numbers, joining, strict=True))
            before = decoder.model_calls
            decoder.decode_block()
            self.batcher.metrics.model_calls += decoder.model_calls - before
            for row in decoder.leave():
                self.batcher.metrics.row_model_calls += row.model_calls
                fields = {"reveal_step": row.reveal_step.tolist(), "model_calls": row.model_calls}
                output = TokenOutput(token_ids=row.response.tolist(), stop_reason="completed", extra_fields=fields)
                self._answer(batch, requests.pop(row.number), output)
            joins = bool(requests) and decoder.takes_rows
            joining = batch.take(self.batcher.max_batch - len(requests)) if joins else []

    def _generate_whole(self, batch: Batch, sampler: Sampler) -> None:
        """Fill all canvases of the batch together."""
        input_ids, attention_mask, generators = self._inputs(batch.requests)
        start = input_ids.shape[1]
        extra: dict[str, Any] = {}
        is_image = batch.requests[0].payload is not None
        if is_image:
            input_ids, attention_mask, extra = self._image_canvas(batch.requests, input_ids, attention_mask)
        output = sampler.generate(
            self.model,
            input_ids,
            attention_mask,
            mask_token_id=self.family.mask_token_id,
            generator=generators,
            **extra,
        )
        calls = output.row_model_calls.tolist()
        self.batcher.metrics.model_calls += int(output.model_calls)
        self.batcher.metrics.row_model_calls += sum(calls)
        responses = output.sequences[:, start:]
        reveals = output.reveal_step[:, start:].tolist()
        fields = [{"reveal_step": reveal, "model_calls": n} for reveal, n in zip(reveals, calls, strict=True)]
        if is_image and self.image_decoder is not None:
            for field, image in zip(fields, self._decode_images(batch.requests, responses), strict=True):
                field["image"] = image
        for request, response, field in zip(batch.requests, responses.tolist(), fields, strict=True):
            self._answer(batch, request, TokenOutput(token_ids=response, stop_reason="completed", extra_fields=field))

    def _image_canvas(
        self, requests: Sequence[Request], input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, dict[str, torch.Tensor]]:
        """Prompts (B, P) with their canvases, the mask of both, and the sampler's unconditional prompts."""
        canvas = torch.tensor([request.payload.canvas_ids for request in requests], device=self.device)
        tokens = torch.cat([input_ids, canvas], dim=1)
        extra = {}
        if self.config.sampler.cfg_scale > 0:
            uncond = [request.payload.uncond_ids for request in requests]
            ids, mask = pad_left(uncond, input_ids.shape[1], self.pad_token_id)
            extra = {"uncond_input_ids": ids.to(self.device), "uncond_attention_mask": mask.to(self.device)}
        if attention_mask is not None:
            attention_mask = torch.cat([attention_mask, torch.ones_like(canvas)], dim=1)
        return tokens, attention_mask, extra

    def _decode_images(self, requests: Sequence[Request], responses: torch.Tensor) -> list[Any]:
        """Pixels of each response, (H, W, 3) uint8; all canvases of a batch hold their image tokens at one place."""
        where = [n for n, token in enumerate(requests[0].payload.canvas_ids) if token == self.family.mask_token_id]
        return self.image_decoder.decode(responses[:, where], self.grid)


class TransformersServer(RolloutServer):
    """Serves an autoregressive transformers model by ancestral sampling with a key-value cache."""

    def _generate(self, batch: Batch) -> None:
        input_ids, attention_mask, generators = self._inputs(batch.requests)
        temperature: float = batch.kind[0]  # type: ignore[index]
        rows = input_ids.shape[0]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        stops = torch.tensor(self.stop_token_ids, device=self.device)
        alive = torch.ones(rows, dtype=torch.bool, device=self.device)
        positions = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        responses: list[list[int]] = [[] for _ in range(rows)]
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
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(rows, 1)], dim=-1)
        for request, response in zip(batch.requests, responses, strict=True):
            fields = {"model_calls": len(response)}
            self._answer(batch, request, TokenOutput(token_ids=response, stop_reason="completed", extra_fields=fields))

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
