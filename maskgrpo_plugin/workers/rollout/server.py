"""Ray servers that hold a rollout model: weight sync, sleep and wake, batched generation by diffusion."""

import asyncio
import logging
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import ray
import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForCausalLM
from verl.utils.config import omega_conf_to_dataclass
from verl.utils.device import get_device_name, get_torch_device
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.rollout.replica import TokenOutput

from maskgrpo_plugin.diffusion.random import LARGEST_SEED
from maskgrpo_plugin.diffusion.samplers.base import RunningBatch, Sampler
from maskgrpo_plugin.models.families import Family, ImageFamily, build_family
from maskgrpo_plugin.models.special_tokens import answer_length, stop_token_ids
from maskgrpo_plugin.rewards.images.manager import IMAGE_FIELD
from maskgrpo_plugin.workers.platform import check_local_device
from maskgrpo_plugin.workers.rollout.batches import SamplerBatch, sampler_batch
from maskgrpo_plugin.workers.rollout.images import ImageDecoder
from maskgrpo_plugin.workers.rollout.model_weights import ModelWeights, allocate_parameters, serves_adapter
from maskgrpo_plugin.workers.rollout.request_queue import Batch, BatchKind, Request, RequestQueue
from maskgrpo_plugin.workers.rollout.requests import CanvasRequest
from maskgrpo_plugin.workers.rollout.weight_transfer import Bucket
from maskgrpo_plugin.workers.scoring import Canvases, Scores, score_canvases

logger = logging.getLogger(__name__)

CONTROL = "control"  # Ray's concurrency group of what may not wait behind requests
CONTROL_CALLS = 16


def server_actor(server_cls: type["RolloutServer"]) -> Any:
    """The Ray actor class of a server, with a concurrency group of its own for control calls."""
    return ray.remote(concurrency_groups={CONTROL: CONTROL_CALLS})(server_cls)


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
        check_local_device()
        self.device = torch.device("cpu" if get_device_name() == "cpu" else f"{get_device_name()}:0")
        self.tokenizer = self.model_config.tokenizer
        self.stop_token_ids = stop_token_ids(self.tokenizer)
        self.pad_token_id = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        self.global_steps: int | None = None
        self._aborted = False
        self.model: Any = self._load_model()
        self.weights = ModelWeights(
            self.model,
            loaded=self.config.load_format != "dummy",
            outlives_sleep=serves_adapter(self.model_config),
        )
        self.queue = RequestQueue(
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
        is_image: bool = False,
        **_: Any,
    ) -> TokenOutput:
        """Generate one response.

        Args:
            request_id: the caller's id; seeds the noise where `sampling_params` has no `seed`.
            prompt_ids: prompt tokens.
            sampling_params: verl's (`temperature`, optional `max_tokens`) and an optional whole-number `seed`; the
                same prompt, settings and seed give the same response whatever else is in the batch.
            canvas_ids, uncond_ids, is_image: see `CanvasRequest`; without `canvas_ids` a text is written.

        Returns:
            Response tokens; `extra_fields` holds `reveal_step`, `model_calls` and `global_steps`, with
            `rollout.calculate_log_probs` the sampler's record (`TokenRecord.fields`), and for an image `image`
            (H, W, 3) uint8 where the server has an image tokenizer.

        Raises:
            ValueError: a token that the model has no embedding of (on a GPU it would end the server), a seed outside
                [0, 2^63), or a text's canvas that is not as long as the responses of `rollout.response_length`.
        """
        seed = sampling_params.get("seed")
        seed = zlib.crc32(str(request_id).encode()) if seed is None else int(seed)
        if not 0 <= seed <= LARGEST_SEED:
            raise ValueError(f"seed={seed}; allowed: from 0 below 2^63")
        canvas = None if canvas_ids is None else CanvasRequest(tuple(canvas_ids), tuple(uncond_ids), is_image)
        if canvas is not None and not is_image and len(canvas.canvas_ids) != self.config.response_length:
            raise ValueError(f"canvas_ids holds {len(canvas.canvas_ids)} tokens, not {self.config.response_length}")
        self._check_ids(prompt_ids, canvas_ids or (), uncond_ids)
        temperature = float(sampling_params.get("temperature", self.config.temperature))
        kind = BatchKind(temperature, len(canvas.canvas_ids) if canvas is not None and is_image else 0)
        output = await self.queue.submit(list(prompt_ids), seed=seed, kind=kind, payload=canvas)
        output.extra_fields["global_steps"] = self.global_steps
        return output

    def _check_ids(self, *rows: Sequence[int]) -> None:
        count = self.model.get_input_embeddings().weight.shape[0]
        for row in rows:
            if len(row) and not 0 <= min(row) <= max(row) < count:
                wrong = next(token for token in row if not 0 <= token < count)
                raise ValueError(f"token {wrong} of a request; allowed: 0 to {count - 1}, the model's embeddings")

    def _run(self, batch: Batch) -> None:
        if not self.has_weights:
            raise RuntimeError(f"rollout replica {self.replica_rank} was asked to generate before it had weights")
        with torch.inference_mode():
            self._generate(batch)

    def _answer(self, batch: Batch, request: Request, output: TokenOutput) -> None:
        ids = output.token_ids
        self.queue.metrics.tokens += min(answer_length(ids, self.stop_token_ids) + 1, len(ids))  # with its end token
        batch.answer(request, output)

    def _generate(self, batch: Batch) -> None:
        """Answer every request of the batch."""
        raise NotImplementedError

    @ray.method(concurrency_group=CONTROL)
    async def receive_bucket(
        self, bucket: Bucket, peft_config: dict[str, Any] | None = None, base_sync_done: bool = True
    ) -> None:
        """Copy one bucket of the actor's weights; the one that completes them lets generation run again, unless it was
        aborted and so waits for `resume_generation`, when the actor has left the device.

        Args:
            bucket: as delivered.
            peft_config, base_sync_done: verl's, see `ModelWeights.receive`, also for the errors.
        """
        await self.queue.pause()
        if self.weights.receive(bucket, peft_config, base_sync_done) and not self._aborted:
            self.queue.resume()

    @ray.method(concurrency_group=CONTROL)
    async def score(self, canvases: Canvases) -> Scores:
        """What the rollout model says of canvases, between two batches; see `score_canvases`."""
        was_open = self.queue.is_open
        await self.queue.pause()
        try:
            return await asyncio.to_thread(score_canvases, self.model, canvases, self.device)
        finally:
            if was_open:
                self.queue.resume()

    @ray.method(concurrency_group=CONTROL)
    async def wake_up(self, tags: list[str] | None = None) -> None:
        """Take device memory for the weights again. Those under a LoRA adapter come back from host memory with their
        values, others are valid after the next weight sync.
        """
        self.weights.restore(self.device)

    @ray.method(concurrency_group=CONTROL)
    async def sleep(self) -> None:
        """Wait for the running batch, then give the weights' device memory back (nothing to give back on the CPU, nor
        with `rollout.free_cache_engine=false`).
        """
        await self.queue.pause()
        if self.device.type != "cpu" and self.config.free_cache_engine:
            self.weights.release()
            get_torch_device().empty_cache()

    @ray.method(concurrency_group=CONTROL)
    async def set_global_steps(self, global_steps: int) -> None:
        """Remember which step's weights the model holds; told with every response."""
        self.global_steps = global_steps

    @ray.method(concurrency_group=CONTROL)
    async def abort_all_requests(self, reject_request: bool = False) -> None:
        """Answer every waiting request as aborted and hold new ones back until `resume_generation`."""
        self._aborted = True
        self.queue.abort(TokenOutput(token_ids=[], stop_reason="aborted"))
        await self.queue.pause()

    @ray.method(concurrency_group=CONTROL)
    async def resume_generation(self) -> None:
        """Serve requests again after an abort."""
        self._aborted = False
        self.queue.resume()

    @ray.method(concurrency_group=CONTROL)
    async def clear_kv_cache(self) -> None:
        """Nothing is kept between requests."""

    @ray.method(concurrency_group=CONTROL)
    async def release_kv_cache(self) -> None:
        """Nothing is kept between requests."""

    @ray.method(concurrency_group=CONTROL)
    async def resume_kv_cache(self) -> None:
        """Nothing is kept between requests."""

    @ray.method(concurrency_group=CONTROL)
    async def start_profile(self, **_: Any) -> None:
        """Profiling of the servers is not offered."""

    @ray.method(concurrency_group=CONTROL)
    async def stop_profile(self) -> None:
        """Profiling of the servers is not offered."""

    @ray.method(concurrency_group=CONTROL)
    async def reconfigure(self, config: Any) -> None:
        """Serve by another rollout section, such as one with another length or sampler; the weights stay."""
        await self.queue.pause()
        self.config = omega_conf_to_dataclass(config)
        self.queue.resume()

    @ray.method(concurrency_group=CONTROL)
    async def pop_metrics(self) -> dict[str, float]:
        """Throughput since the last call; see `BatchingMetrics.summary`."""
        return self.queue.pop_metrics()


class DiffusionServer(RolloutServer):
    """Serves a masked diffusion model with the sampler of `rollout.sampler`: text, and images of families with them.

    Attributes:
        family: the checkpoint's family.
        image_decoder: the image tokenizer, or None where `rollout.image.tokenizer_path` names none.
        grid: rows and columns of image tokens; None: the checkpoint's square.
    """

    def __init__(self, config: Any, model_config: Any, replica_rank: int):
        super().__init__(config, model_config, replica_rank)
        self.family: Family = build_family(self.model_config.hf_config, self.tokenizer)
        self.stop_token_ids = self.family.stop_token_ids
        self.image_decoder: ImageDecoder | None = None
        self.grid: tuple[int, int] | None = None
        if self.config.compile:
            compile_layers(self.model)
        if self.config.image.tokenizer_path:
            family = self._image_family()
            self.image_decoder = ImageDecoder(self.config.image.tokenizer_path, family, self.device)
            self.grid = self.config.image.grid(family, self.image_decoder.model.config)

    def _image_family(self) -> ImageFamily:
        if not isinstance(self.family, ImageFamily):
            raise ValueError(f"an image was asked for; models of the family {self.family.name!r} have none")
        return self.family

    def _generate(self, batch: Batch) -> None:
        by_run: dict[str, Any] = {
            "response_length": self.config.response_length,
            "temperature": batch.kind.temperature,
            "stop_token_ids": tuple(self.stop_token_ids),
            "record": self.config.calculate_log_probs,
        }
        if batch.kind.canvas_length:
            by_run["vocab_slice"] = self._image_family().image.vocab_slice
        sampler = self.config.sampler.build(**by_run)
        decoder = sampler.decoder(self.model, mask_token_id=self.family.mask_token_id, pad_token_id=self.pad_token_id)
        if decoder is None:
            self._generate_whole(batch, sampler)
        else:
            self._generate_blocks(batch, decoder)

    def _generate_blocks(self, batch: Batch, decoder: RunningBatch) -> None:
        """Decode block by block; rows that end are answered, and waiting requests take their places."""
        requests: dict[int, Request] = {}
        joining = batch.requests
        while joining or decoder.running:
            if joining:
                laid = self._lay_out(joining)
                numbers = decoder.join(laid.tokens, laid.attention_mask, laid.generators)
                requests.update(zip(numbers, joining, strict=True))
            before = decoder.model_calls
            decoder.decode_block()
            self.queue.metrics.model_calls += decoder.model_calls - before
            for row in decoder.leave():
                self.queue.metrics.row_model_calls += row.model_calls
                fields = {"reveal_step": row.reveal_step.tolist(), "model_calls": row.model_calls}
                if row.record is not None:
                    fields |= row.record.fields()
                output = TokenOutput(token_ids=row.response.tolist(), stop_reason="completed", extra_fields=fields)
                self._answer(batch, requests.pop(row.number), output)
            joins = bool(requests) and decoder.takes_rows
            joining = batch.take(self.queue.max_batch - len(requests)) if joins else []

    def _generate_whole(self, batch: Batch, sampler: Sampler) -> None:
        """Fill all canvases of the batch together."""
        laid = self._lay_out(batch.requests)
        length = batch.kind.canvas_length or self.config.response_length
        is_image = batch.kind.canvas_length > 0
        output = sampler.generate(
            self.model,
            laid.tokens,
            laid.attention_mask,
            mask_token_id=self.family.mask_token_id,
            generator=laid.generators,
            **laid.uncond,
        )
        calls = output.row_model_calls.tolist()
        self.queue.metrics.model_calls += int(output.model_calls)
        self.queue.metrics.row_model_calls += sum(calls)
        responses = output.sequences[:, -length:]
        reveals = output.reveal_step[:, -length:].tolist()
        fields = [{"reveal_step": reveal, "model_calls": n} for reveal, n in zip(reveals, calls, strict=True)]
        if output.record is not None:
            for row, field in enumerate(fields):
                field |= output.record.of_rows(row).fields()
        if is_image and self.image_decoder is not None:
            images = self._decode_images(self.image_decoder, batch.requests, responses)
            for field, image in zip(fields, images, strict=True):
                field[IMAGE_FIELD] = image
        for request, response, field in zip(batch.requests, responses.tolist(), fields, strict=True):
            self._answer(batch, request, TokenOutput(token_ids=response, stop_reason="completed", extra_fields=field))

    def _lay_out(self, requests: Sequence[Request]) -> SamplerBatch:
        return sampler_batch(
            [request.prompt_ids for request in requests],
            [request.payload for request in requests],
            [request.seed for request in requests],
            response_length=self.config.response_length,
            mask_token_id=self.family.mask_token_id,
            padding=self.pad_token_id,
            device=self.device,
        )

    def _decode_images(self, decoder: ImageDecoder, requests: Sequence[Request], responses: Tensor) -> list[np.ndarray]:
        """Pixels of each response, (H, W, 3) uint8; all canvases of a batch hold their image tokens at one place."""
        where = [n for n, token in enumerate(requests[0].payload.canvas_ids) if token == self.family.mask_token_id]
        return decoder.decode(responses[:, where], self.grid or self._image_family().default_grid())
