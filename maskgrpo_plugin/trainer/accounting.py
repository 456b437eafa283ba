"""What became of a step's completions: lost ones and failed rewards are counted, and too many of them end the run."""

from collections import Counter
from collections.abc import Sequence

from maskgrpo_plugin.workers.agent_loop_manager import Loss

MAX_LOST_SHARE = "algorithm.max_lost_share"
CAUSES_SHOWN = 3


class LostSamples(RuntimeError):
    """More completions or rewards of a step are missing than `algorithm.max_lost_share` allows."""


class Ledger:
    """The losses of one step, or one validation.

    With max_lost_share 0.1 and a step of 96 completions, 9 may be missing and the tenth ends the run.

    Args:
        max_lost_share: largest share of the completions that may be lost or without reward, from 0 to 1.
        completions: how many were asked for.
    """

    def __init__(self, max_lost_share: float, completions: int):
        self.max_lost_share, self.completions = max_lost_share, completions
        self.losses: list[Loss] = []

    @property
    def lost(self) -> int:
        """Completions that are missing."""
        return sum(loss.is_lost for loss in self.losses)

    def add(self, losses: Sequence[Loss]) -> None:
        """Enter losses."""
        self.losses += losses

    def check(self, what: str, failed_rewards: int = 0) -> None:
        """Compare what is missing with what may be; lost completions that were replaced by others count as well.

        Args:
            what: name of the step or validation in the message.
            failed_rewards: completions that are there and have no reward.

        Raises:
            LostSamples: there is too much, with the number of each and the commonest causes.
        """
        missing = self.lost + failed_rewards
        if missing <= self.max_lost_share * self.completions:
            return
        causes = Counter(loss.cause for loss in self.losses).most_common(CAUSES_SHOWN)
        said = "; ".join(f"{count} × {cause}" for cause, count in causes) or "the reward workers' log has the causes"
        raise LostSamples(
            f"{what}: {self.lost} of {self.completions} completions are lost and {failed_rewards} have no reward, "
            f"more than {MAX_LOST_SHARE}={self.max_lost_share} allows. {said}"
        )
