"""Policy losses in verl's registry, one file each; importing the package registers them."""

from functools import partial
from importlib import import_module
from operator import contains
from pkgutil import iter_modules

from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

from maskgrpo_plugin.registry import Registered

_verls_own = set(POLICY_LOSS_REGISTRY)
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

REGISTERS = tuple(
    Registered(f"loss {name}", partial(contains, POLICY_LOSS_REGISTRY, name))
    for name in POLICY_LOSS_REGISTRY
    if name not in _verls_own
)
