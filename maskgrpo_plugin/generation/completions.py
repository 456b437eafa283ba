"""From prompts to completions: the jobs of a command, and their batches through the sampler."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskgrpo_plugin.diffusion.samplers import Sampler
from maskgrpo_plugin.diffusion.samplers.base import OnStep
from maskgrpo_plugin.errors import OptionError, first_line
from maskgrpo_plugin.generation.checkpoint import Checkpoint
from maskgrpo_plugin.generation.pictures import picture_codes, picture_side, read_picture
from maskgrpo_plugin.generation.questions import Question
from maskgrpo_plugin.models.special_tokens import answer_length
from maskgrpo_plugin.workers.rollout.batches import SamplerBatch, noise, pad_prompts, sampler_batch
from maskgrpo_plugin.workers.rollout.left_to_right import decode_left_to_right
from maskgrpo_plugin.workers.rollout.requests import RequestBuilder, RowRequest, request_seed


@dataclass(frozen=True)
class Job:
    """One completion that is asked for.

    Attributes:
        question: what is asked.
        sample: number of the completion among those of its prompt.
        request: the prompt as the checkpoint takes it.
        seed: of its noise.
        picture: (H, W, 3) uint8 that it is about, as the checkpoint sees it; or None.
    """

    question: Question
    sample: int
    request: RowRequest
    seed: int
    picture: np.ndarray | None = None

    @property
    def is_image(self) -> bool:
        """Whether an image is asked for."""
        return self.request.canvas is not None and self.request.canvas.is_image

    @property
    def writes(self) -> list[int]:
        """Places of the response where the model writes."""
        return [n for n, own in enumerate(self.request.response_mask) if own]


@dataclass(frozen=True)
class Completion:
    """What came of a job.

    Attributes:
        job: what was asked.
        token_ids: of the response.
        model_calls: forward passes that it took part in.
        text: of a text, up to its first stop token.
        tokens: number of tokens before that; of an image all that the model wrote.
        image: (H, W, 3) uint8, of an image.
    """

    job: Job
    token_ids: list[int]
    model_calls: int
    text: str | None
    tokens: int
    image: np.ndarray | None = None


Watch = Callable[[Sequence[Job], SamplerBatch], OnStep | None]


@dataclass
class Pictures:
    """The pictures that prompts are about, each read and turned into codes once.

    Attributes:
        checkpoint: whose image tokenizer gives the codes.
    """

    checkpoint: Checkpoint

    def __post_init__(self) -> None:
        self._known: dict[Path, tuple[np.ndarray, list[int]]] = {}

    def read(self, file: Path) -> tuple[np.ndarray, list[int]]:
        """Pixels (H, W, 3) uint8 and codes of a picture; for the errors see `read_picture`."""
        if file not in self._known:
            family, image = self.checkpoint.image_family("--image", str(file)), self.checkpoint.image
            size = (image.height, image.width) if image.height and image.width else None
            tokenizer = self.checkpoint.image_tokenizer
            pixels = read_picture(file, picture_side(family, tokenizer, size))
            self._known[file] = pixels, picture_codes(pixels, tokenizer, self.checkpoint.device)
        return self._known[file]


class Planner:
    """Makes the jobs of prompts.

    Args:
        checkpoint: whose requests they are.
        length: tokens of a text; None: images are asked for.
        samples: completions per prompt.
        seed: of the command.
    """

    def __init__(self, checkpoint: Checkpoint, length: int | None, samples: int, seed: int):
        self.checkpoint, self.length, self.samples, self.seed = checkpoint, length, samples, seed
        self.pictures = Pictures(checkpoint)
        grid = checkpoint.grid() if length is None else None
        self.builder = RequestBuilder(checkpoint.tokenizer, checkpoint.family, grid=grid)

    def jobs(self, question: Question) -> list[Job]:
        """The jobs of a prompt, one per sample.

        Raises:
            OptionError: a prompt that does not fit the checkpoint, or a picture that cannot be read.
        """
        info: dict[str, Any] = {"modality": "t2i" if self.length is None else "text"}
        pixels = None
        if question.picture is not None:
            if self.length is None:
                raise OptionError(question.place, str(question.picture), "pictures are for texts about them")
            pixels, codes = self.pictures.read(question.picture)
            info = {"modality": "mmu", "image_codes": codes}
        try:
            request = self.builder.build(question.messages, info, self.length or 1)
        except Exception as error:  # chat templates are programs, and raise what they like
            raise OptionError(question.place, question.text, first_line(error)) from error
        self._check(question, request)
        seeds = [request_seed(self.seed, 0, question.row, n, request.prompt_ids) for n in range(self.samples)]
        return [Job(question, n, request, seed, pixels) for n, seed in enumerate(seeds)]

    def _check(self, question: Question, request: RowRequest) -> None:
        family, total = self.checkpoint.family, len(request.prompt_ids) + len(request.response_mask)
        if self.checkpoint.longest is not None and total > self.checkpoint.longest:
            flag, value = (question.place, question.text) if self.length is None else ("--length", self.length)
            allowed = f"with the prompt's {len(request.prompt_ids)} tokens it passes the model's "
            raise OptionError(flag, value, f"{allowed}{self.checkpoint.longest} ({question.place})")
        if family is not None and family.mask_token_id in request.prompt_ids:
            raise OptionError(question.place, question.text, "the prompt holds the mask token")


@dataclass(frozen=True)
class Writer:
    """Runs jobs in batches; a completion depends on its job alone, whatever its batch.

    Attributes:
        checkpoint: the model.
        sampler: of the masks; None: the checkpoint is autoregressive.
        temperature: of an autoregressive checkpoint.
        length: of the texts of an autoregressive checkpoint.
        batch_size: most jobs per batch.
    """

    checkpoint: Checkpoint
    sampler: Sampler | None
    temperature: float
    length: int
    batch_size: int

    def complete(self, jobs: Sequence[Job], watch: Watch) -> Iterator[list[Completion]]:
        """Complete jobs, batch after batch in their order.

        Args:
            jobs: all of images, or all of texts.
            watch: gives the sampler's observer of each batch, or None.

        Yields:
            the completions of a batch.

        Raises:
            OptionError: weights that cannot be loaded, or an option that does not go with the model.
        """
        for first in range(0, len(jobs), self.batch_size):
            batch = jobs[first : first + self.batch_size]
            yield self._left_to_right(batch) if self.sampler is None else self._denoise(batch, self.sampler, watch)

    @torch.inference_mode()
    def _denoise(self, jobs: Sequence[Job], sampler: Sampler, watch: Watch) -> list[Completion]:
        checkpoint = self.checkpoint
        batch = sampler_batch(
            [job.request.prompt_ids for job in jobs],
            [job.request.canvas for job in jobs],
            [job.seed for job in jobs],
            response_length=len(jobs[0].request.response_mask),
            mask_token_id=checkpoint.mask_token_id,
            padding=checkpoint.padding,
            device=checkpoint.device,
        )
        try:
            output = sampler.generate(
                checkpoint.model,
                batch.tokens,
                batch.attention_mask,
                mask_token_id=checkpoint.mask_token_id,
                generator=batch.generators,
                on_step=watch(jobs, batch),
                **batch.uncond,
            )
        except OptionError as error:  # what it sees with the model alone
            raise OptionError(f"--{error.key.replace('_', '-')}", error.value, error.allowed) from error
        responses = output.sequences[:, -len(jobs[0].request.response_mask) :]
        made = zip(jobs, responses.tolist(), output.row_model_calls.tolist(), strict=True)
        if not jobs[0].is_image:
            return [self._text(job, ids, calls) for job, ids, calls in made]
        tokens = responses[:, jobs[0].writes]
        images = checkpoint.image_tokenizer.decode(tokens, checkpoint.grid())
        done = [Completion(job, ids, calls, None, tokens.shape[1]) for job, ids, calls in made]
        return [replace(each, image=image) for each, image in zip(done, images, strict=True)]

    @torch.inference_mode()
    def _left_to_right(self, jobs: Sequence[Job]) -> list[Completion]:
        checkpoint = self.checkpoint
        prompts, mask = pad_prompts([job.request.prompt_ids for job in jobs], checkpoint.padding, checkpoint.device)
        responses = decode_left_to_right(
            checkpoint.model,
            prompts,
            mask,
            noise([job.seed for job in jobs], checkpoint.device),
            temperature=self.temperature,
            response_length=self.length,
            stop_token_ids=checkpoint.stop_token_ids,
        )
        return [self._text(job, ids, len(ids)) for job, ids in zip(jobs, responses, strict=True)]

    def _text(self, job: Job, ids: list[int], calls: int) -> Completion:
        tokens = answer_length(ids, self.checkpoint.stop_token_ids)
        text = self.checkpoint.tokenizer.decode(ids[:tokens], skip_special_tokens=True)
        return Completion(job, ids, calls, text, tokens)
