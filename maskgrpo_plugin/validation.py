"""Checks of the whole config on the driver, before Ray starts: wrong values end the run in seconds, named by key.

verl builds `actor_rollout_ref.actor` on the driver; the plugin's configs hold `preflight: ${maskgrpo.preflight:}`
there, and this resolver checks every section when that key is read. Each check lives with its subject.
"""

import sys
from collections.abc import Callable

from omegaconf import DictConfig, OmegaConf

from maskgrpo_plugin import extensions
from maskgrpo_plugin.config import check_estimation
from maskgrpo_plugin.data.checks import check_files
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.models.checks import check_model
from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.rewards.images.config import check_image_reward_config
from maskgrpo_plugin.rewards.text.config import check_text_reward_config
from maskgrpo_plugin.trainer.checks import check_batches, check_names, check_unsupported
from maskgrpo_plugin.workers.checks import check_ray, check_strategy
from maskgrpo_plugin.workers.platform import check_device
from maskgrpo_plugin.workers.rollout.checks import check_images, check_rollout

RESOLVER = "maskgrpo.preflight"

Check = Callable[[DictConfig], None]
BEFORE: tuple[Check, ...] = (extensions.read_config, check_names, check_files, check_batches)
OF_DIFFUSION: tuple[Check, ...] = (check_estimation, check_unsupported, check_images)
OF_ALL: tuple[Check, ...] = (
    check_model,
    check_strategy,
    check_rollout,
    check_image_reward_config,
    check_text_reward_config,
    check_ray,
    check_device,
)


def preflight(config: DictConfig) -> bool:
    """Check a run's config.

    Args:
        config: the composed config of `verl.trainer.main_ppo`.

    Returns:
        True.

    Raises:
        OptionError: the first value that cannot work.
    """
    of_diffusion = OF_DIFFUSION if config.actor_rollout_ref.model.model_type == "masked_diffusion" else ()
    for check in (*BEFORE, *of_diffusion, *OF_ALL):
        check(config)
    return True


def _resolve(*, _root_: DictConfig) -> bool:
    """What `${maskgrpo.preflight:}` is: True, or the end of the process with one line on standard error."""
    try:
        return preflight(_root_)
    except OptionError as error:
        sys.stderr.write(f"maskgrpo_plugin: {error}\n")
        raise SystemExit(2) from None


OmegaConf.register_new_resolver(RESOLVER, _resolve, replace=True)

REGISTERS = (Registered(f"resolver {RESOLVER}", lambda: OmegaConf.has_resolver(RESOLVER)),)
