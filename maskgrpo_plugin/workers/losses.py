"""The loss of an update: verl's, but that a policy loss may have a KL term of its own."""

from typing import Any

from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.workers.utils.losses import ppo_loss


class OwnKL:
    """The actor's config as a policy loss with a KL term of its own reads it: verl adds none.

    Attributes:
        ref_log_prob: (u, r) the reference's estimates.
    """

    use_kl_loss = False

    def __init__(self, config: Any, ref_log_prob: Tensor):
        self._config, self.ref_log_prob = config, ref_log_prob

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def update_loss(config: Any, model_output: dict[str, Tensor], data: TensorDict, dp_group: Any = None) -> Any:
    """verl's `ppo_loss`; where the policy loss has a KL term of its own, with the reference's estimates in its config.

    verl's KL term is one per token, which a score of a sequence has not.

    Args, returns: as verl's.
    """
    own = getattr(get_policy_loss_fn(config.policy_loss.get("loss_mode", "vanilla")), "has_kl", False)
    if own and config.use_kl_loss:
        config = OwnKL(config, data["ref_log_prob"].to_padded_tensor(0.0))
    return ppo_loss(config, model_output, data, dp_group)
