"""Runs an evaluation: each generation is asked of the servers, scored, and written down as soon as it is there."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from maskgrpo_plugin.config import DiffusionRolloutConfig
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.evaluation.image_files import write_image
from maskgrpo_plugin.evaluation.problems import Problem
from maskgrpo_plugin.evaluation.records import Key, Records
from maskgrpo_plugin.evaluation.scoring import Scorer
from maskgrpo_plugin.evaluation.servers import ServerPool
from maskgrpo_plugin.models.special_tokens import answer_length
from maskgrpo_plugin.rewards.images.manager import IMAGE_FIELD
from maskgrpo_plugin.workers.rollout.requests import RowRequest, request_seed


@dataclass(frozen=True)
class Length:
    """What is to be generated at one length.

    Attributes:
        tokens: tokens per response; of an image, its tokens.
        config: the rollout section of the servers.
        requests: by problem id.
    """

    tokens: int
    config: DiffusionRolloutConfig
    requests: Mapping[str, RowRequest]


class Runner:
    """Makes what is missing in the records.

    Args:
        pool: the servers.
        scorer: None leaves generations unscored.
        records: the folder's generations.
        tokenizer: the checkpoint's, to decode responses.
        stop_token_ids: ids that end a text.
        temperature: of the sampler.
        seed: of the run; the noise of a generation depends on it, the row, the sample and the prompt.
        in_flight: largest number of generations that are asked for and not yet written down.
        with_token_ids: whether the responses' tokens are written too.
    """

    def __init__(
        self,
        pool: ServerPool,
        scorer: Scorer | None,
        records: Records,
        *,
        tokenizer: Any,
        stop_token_ids: Sequence[int],
        temperature: float,
        seed: int,
        in_flight: int,
        with_token_ids: bool = False,
    ):
        self.pool, self.scorer, self.records = pool, scorer, records
        self.tokenizer, self.stop_token_ids = tokenizer, frozenset(stop_token_ids)
        self.temperature, self.seed = temperature, seed
        self.in_flight, self.with_token_ids = in_flight, with_token_ids

    async def run(self, problems: Sequence[Problem], lengths: Sequence[Length], samples: int) -> list[dict[str, Any]]:
        """Generate and score, length by length; what the records hold already is not made again.

        Returns:
            the rows of all that was asked for, in the order of lengths, problems and samples.

        Raises:
            ValueError: nobody can score a problem's task.
        """
        wanted = [(length, problem, sample) for length in lengths for problem in problems for sample in range(samples)]
        missing = [job for job in wanted if _key(*job) not in self.records.rows]
        with tqdm(total=len(wanted), initial=len(wanted) - len(missing), desc="generations", unit="") as bar:
            for length in lengths:
                jobs = [job for job in missing if job[0] is length]
                if jobs:
                    await self.pool.reconfigure(length.config)
                    await self._run_all(jobs, bar)
        return [self.records.rows[_key(*job)] for job in wanted]

    async def _run_all(self, jobs: Sequence[tuple[Length, Problem, int]], bar: Any) -> None:
        places = asyncio.Semaphore(self.in_flight)

        async def one(length: Length, problem: Problem, sample: int) -> None:
            async with places:
                self.records.add(await self._generation(length, problem, sample))
                bar.update()

        tasks = [asyncio.ensure_future(one(*job)) for job in jobs]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _generation(self, length: Length, problem: Problem, sample: int) -> dict[str, Any]:
        request = length.requests[problem.id]
        seed = request_seed(self.seed, 0, problem.row, sample, request.prompt_ids)
        output = await self.pool.generate(
            request_id=f"{problem.id}-{sample}",
            prompt_ids=request.prompt_ids,
            sampling_params={"temperature": self.temperature, "seed": seed},
            **request.arguments,
        )
        image = output.extra_fields.get(IMAGE_FIELD)
        row: dict[str, Any] = {
            "id": problem.id,
            "data_source": problem.data_source,
            "length": length.tokens,
            "sample": sample,
            "seed": seed,
            "prompt": problem.text,
            "model_calls": output.extra_fields["model_calls"],
        }
        if problem.is_image:
            row["effective_tokens"] = request.new_tokens
            row["image"] = write_image(self.records.folder, problem, sample, image)
            answer = list(output.token_ids)
        else:
            row["effective_tokens"] = answer_length(output.token_ids, self.stop_token_ids)
            answer = [*request.prefix_ids, *output.token_ids[: row["effective_tokens"]]]
            row["text"] = self.tokenizer.decode(answer, skip_special_tokens=True)
        if self.with_token_ids:
            row["token_ids"] = output.token_ids
        unscored: dict[str, Any] = {"score": None, "acc": None, "reward": {}, "failure": None}
        return row | (await self.scorer.score(problem, answer, image) if self.scorer else unscored)


def check_positions(lengths: Sequence[Length], positions: int | None) -> None:
    """Check that prompts and responses fit the model.

    Args:
        lengths: with their requests.
        positions: the longest sequence that the model takes; None: not known.

    Raises:
        OptionError: one does not fit.
    """
    for length in lengths:
        for name, request in length.requests.items():
            total = len(request.prompt_ids) + length.tokens
            if positions is not None and total > positions:
                raise OptionError(
                    "--lengths",
                    length.tokens,
                    f"with the {len(request.prompt_ids)} tokens of the prompt {name} it passes the model's {positions}",
                )


def _key(length: Length, problem: Problem, sample: int) -> Key:
    return problem.id, length.tokens, sample
