"""verl's agent-loop workers, which after scoring keep an image from travelling on to the trainer.

Named in the configs as `actor_rollout_ref.rollout.agent.agent_loop_manager_class`.
"""

from contextvars import ContextVar
from typing import Any

import numpy as np
import ray
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from maskgrpo_plugin.rewards.images.manager import IMAGE_FIELD

_validating: ContextVar[bool] = ContextVar("validating", default=False)

# verl's worker is already a Ray actor class; this is the Python class under it
_Worker: Any = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # type: ignore[attr-defined]


class ImageKeepingWorker(_Worker):
    """Scores a completion, then takes its pixels out of what is stored; some of the validation's are kept to be shown.

    Attributes:
        shown: (row, prompt, score, image (H, W, 3) uint8) of validation completions since `pop_images`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.shown: list[tuple[int, str, float, np.ndarray]] = []
        self.most_shown = int(self.config.actor_rollout_ref.rollout.image.contact_sheet_rows)

    async def _compute_score(self, outputs: list[AgentLoopOutput], kwargs: dict) -> None:
        await super()._compute_score(outputs, kwargs)
        for output in outputs:
            image = output.extra_fields.pop(IMAGE_FIELD, None)
            if image is not None and _validating.get() and len(self.shown) < self.most_shown:
                text = str(kwargs["raw_prompt"][-1]["content"])
                self.shown.append((int(kwargs["index"]), text, float(output.reward_score or 0.0), image))

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        _validating.set(validate)  # of this completion's task alone
        await super()._agent_loop_postprocess(output, validate, **kwargs)

    def pop_images(self) -> list[tuple[int, str, float, np.ndarray]]:
        """What validation has shown since the last call, see `shown`."""
        shown, self.shown = self.shown, []
        return shown


class MaskGRPOAgentLoopManager(AgentLoopManagerTQ):
    """verl's agent-loop manager with `ImageKeepingWorker`s."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(ImageKeepingWorker)

    def pop_images(self) -> list[tuple[int, str, float, np.ndarray]]:
        """Images of the last validation from all workers, in the order of the data; see `ImageKeepingWorker.shown`."""
        found = ray.get([worker.pop_images.remote() for worker in self.agent_loop_workers])
        return sorted((image for images in found for image in images), key=lambda image: image[0])
