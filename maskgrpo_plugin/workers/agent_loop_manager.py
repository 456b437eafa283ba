"""verl's agent-loop workers, which account for every completion and keep images from travelling on to the trainer.

Named in the configs as `actor_rollout_ref.rollout.agent.agent_loop_manager_class`.
"""

import asyncio
import logging
import time
from contextvars import ContextVar
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import ray
from ray.exceptions import ActorDiedError, RayActorError
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from maskgrpo_plugin.errors import last_line
from maskgrpo_plugin.rewards.images.manager import IMAGE_FIELD
from maskgrpo_plugin.workers.agent_loop import SINGLE_TURN, SeededSingleTurn

logger = logging.getLogger(__name__)

ATTEMPTS = 3
RESTART_S = 120.0  # the longest wait for a reward worker that Ray restarts
WAIT_S = 1.0  # before the second attempt, and twice that before the third
MISTAKES = (ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError)  # not tried again
MOST_CAUSE = 500  # characters of a cause
FAILED_REWARD = {"acc": 0.0, "reward_failed": 1.0}

_validating: ContextVar[bool] = ContextVar("validating", default=False)

# verl's worker is already a Ray actor class; this is the Python class under it
_Worker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # type: ignore[attr-defined]


class Loss(NamedTuple):
    """A completion that could not be had, or whose reward could not.

    Attributes:
        validating: whether it was of a validation.
        is_lost: whether the completion itself is missing; else it is there, with a failed reward.
        cause: what went wrong, in one line.
    """

    validating: bool
    is_lost: bool
    cause: str


class AccountingWorker(_Worker):
    """Runs a completion again where a machine failed and not the data, and tells the trainer of each that is lost.

    A reward worker that raises costs a completion its reward, not its place in the batch: the failure policy decides.
    After scoring, pixels are taken out of what is stored; some of the validation's are kept to be shown.

    Attributes:
        losses: of completions since `pop_losses`.
        shown: (row, prompt, score, image (H, W, 3) uint8) of validation completions since `pop_images`.
    """

    reward_loop_worker_handles: list[Any] | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.losses: list[Loss] = []
        self.shown: list[tuple[int, str, float, np.ndarray]] = []
        self.most_shown = int(self.config.actor_rollout_ref.rollout.image.contact_sheet_rows)

    @cached_property
    def _single_turn(self) -> SeededSingleTurn:
        configs = (DictConfigWrap(self.config), DictConfigWrap(self.config.data))
        return SeededSingleTurn(configs[0], self.llm_client, self.tokenizer, configs[1])

    async def _run_agent_loop(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._run_once(sampling_params, trajectory, **kwargs)
            except Exception as error:
                if attempt == ATTEMPTS or isinstance(error, MISTAKES):
                    self.losses.append(Loss(trajectory["validate"], True, last_line(error)[:MOST_CAUSE]))
                    raise
                logger.warning("attempt %d of %d at a completion failed: %s", attempt, ATTEMPTS, last_line(error))
                await asyncio.sleep(WAIT_S * attempt)
        raise AssertionError("unreachable")

    async def _run_once(self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        """One completion; the plugin's agent loop keeps nothing of one, so that one serves all: verl has Hydra make one
        for each, which takes a fifth of the worker's time on short answers.
        """
        if kwargs.get("agent_name") != SINGLE_TURN or kwargs.get("trace"):
            return await super()._run_agent_loop(sampling_params, trajectory, **kwargs)
        row = {key: value for key, value in kwargs.items() if key not in ("agent_name", "trace")}
        output = await self._single_turn.run(sampling_params, **row)
        return await self._agent_loop_postprocess(output, trajectory["validate"], **row)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        try:
            await self._score(outputs, kwargs)
        except Exception as error:
            logger.exception("no reward for index=%s: it counts as failed", kwargs.get("index"))
            self.losses.append(Loss(_validating.get(), False, last_line(error)[:MOST_CAUSE]))
            outputs[-1].reward_score = 0.0
            outputs[-1].extra_fields["reward_extra_info"] = dict(FAILED_REWARD)
        for output in outputs:
            image = output.extra_fields.pop(IMAGE_FIELD, None)
            if image is not None and _validating.get() and len(self.shown) < self.most_shown:
                text = str(kwargs["raw_prompt"][-1]["content"])
                self.shown.append((int(kwargs["index"]), text, float(output.reward_score or 0.0), image))

    async def _score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        """Score by some reward worker; one that dies meanwhile is restarted by Ray or, at last, asked no more.

        Raises:
            RayActorError: the workers died at each attempt.
            RuntimeError: no reward worker is left.
        """
        attempt, deadline = 1, time.monotonic() + RESTART_S
        while True:
            if self.reward_loop_worker_handles is not None and not self.reward_loop_worker_handles:
                raise RuntimeError("every reward worker (reward.num_workers) died more often than Ray restarts it")
            try:
                return await super()._compute_score(outputs, kwargs)
            except RayActorError as error:
                if isinstance(error, ActorDiedError):
                    self._forget(error.actor_id)
                restarting = "restarting" in str(error) and time.monotonic() < deadline
                if attempt == ATTEMPTS and not restarting:
                    raise
                logger.warning("a reward worker died: %s", last_line(error))
                await asyncio.sleep(WAIT_S * attempt)
                attempt += not restarting

    def _forget(self, actor_id: str | None) -> None:
        handles = self.reward_loop_worker_handles or []
        self.reward_loop_worker_handles = [handle for handle in handles if handle._actor_id.hex() != actor_id]

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        _validating.set(validate)  # of this completion's task alone
        await super()._agent_loop_postprocess(output, validate, **kwargs)

    def pop_images(self) -> list[tuple[int, str, float, np.ndarray]]:
        """What validation has shown since the last call, see `shown`."""
        shown, self.shown = self.shown, []
        return shown

    def pop_losses(self) -> list[Loss]:
        """What was lost since the last call."""
        losses, self.losses = self.losses, []
        return losses


class MaskGRPOAgentLoopManager(AgentLoopManagerTQ):
    """verl's agent-loop manager with `AccountingWorker`s."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(AccountingWorker)

    def pop_images(self) -> list[tuple[int, str, float, np.ndarray]]:
        """Images of the last validation from all workers, in the order of the data; see `AccountingWorker.shown`."""
        found = ray.get([worker.pop_images.remote() for worker in self.agent_loop_workers])
        return sorted((image for images in found for image in images), key=lambda image: image[0])

    def pop_losses(self) -> list[Loss]:
        """What all workers lost since the last call."""
        return [loss for losses in ray.get([w.pop_losses.remote() for w in self.agent_loop_workers]) for loss in losses]
