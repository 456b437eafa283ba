"""Hydra finds the shipped configs by name from any folder: `python -m verl.trainer.main_ppo --config-name quickstart`.

Hydra itself imports every module of the namespace package `hydra_plugins`, which has no `__init__.py` for that reason.
"""

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from maskgrpo_cli.shipped import config_source

VERL = "verl/trainer/config"


class MaskGRPOSearchPath(SearchPathPlugin):
    """Adds the shipped configs to the search path of programs whose main configs are verl's; others keep theirs."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the configs behind verl's own, and behind the folder that a user names by `--config-dir`.

        Hydra puts that folder before the first entry of the provider `schema`, after it has called this.
        """
        main = [entry.path for entry in search_path.get_path() if entry.provider == "main"]
        if any(path.replace(".", "/").endswith(VERL) for path in main):
            search_path.append(provider="schema", path=config_source())
