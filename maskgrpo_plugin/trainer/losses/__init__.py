"""Policy losses in verl's registry, one file each; importing the package registers them."""

from functools import partial
from importlib import import_module
from operator import contains
from pkgutil import iter_modules

from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

from maskgrpo_plugin.registry import Registered
from maskgrpo_plugin.trainer.losses.sequence import LOSSES

_verls_own = set(POLICY_LOSS_REGISTRY)
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

PACKAGED = frozenset(POLICY_LOSS_REGISTRY)  # verl's losses and the plugin's; what is registered later is a user's own

OWN = tuple(name for name in POLICY_LOSS_REGISTRY if name not in _verls_own)  # the plugin's
OF_TOKENS = tuple(name for name in OWN if name not in LOSSES)
REGISTERS = tuple(Registered(f"loss {name}", partial(contains, POLICY_LOSS_REGISTRY, name)) for name in OWN)


def compares_with_old(name: str) -> bool:
    """Whether the policy loss of that name compares with the policy before the first update."""
    return name not in LOSSES or LOSSES[name].uses_old
