"""Composed configs, each composed once, and what the driver says of them with overrides."""

import pickle
import re

import ranks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.validation import preflight

PARSER = OverridesParser.create()
BETWEEN = re.compile(r"\s+(?=[+~]{0,2}[\w.]+=|~)")


def parse(line):
    """The config's name, the overrides, and the key that must be named, of a line of `broken_settings`."""
    name, _, rest = line[1:].partition("] ") if line.startswith("[") else ("quickstart", "", line)
    text, _, key = rest.partition(" => ")
    overrides = BETWEEN.split(text)
    return name, overrides, key or overrides[-1].lstrip("+~").partition("=")[0]


class Bases:
    """Composed configs of one folder: with overrides, applied as Hydra's command line does."""

    def __init__(self, folder):
        self.folder, self.known = folder, {}

    def config(self, name, overrides):
        groups = [override for override in overrides if override.startswith("method=")]
        base = (name, *groups)
        if base not in self.known:
            folder_key = f"{name.partition('_')[0]}_dir"
            composed = ranks.compose_config(self.folder, *groups, name=name, folder_key=folder_key)
            OmegaConf.set_struct(composed, True)
            self.known[base] = pickle.dumps(composed)
        config = pickle.loads(self.known[base])
        values = [override for override in overrides if override not in groups]
        ConfigLoaderImpl._apply_overrides_to_config(PARSER.parse_overrides(values), config)
        return config

    def refused(self, *overrides, name="quickstart"):
        """The error of a config with these overrides, or None."""
        try:
            preflight(self.config(name, overrides))
        except OptionError as error:
            return error
        return None

    def outcome(self, line):
        """(whether a line of `broken_settings` is refused by its key in one line, what was said)."""
        name, overrides, key = parse(line)
        try:
            error = self.refused(*overrides, name=name)
        except Exception as hydra:  # Hydra's own, before the checks
            return key in str(hydra), f"{type(hydra).__name__}: {hydra}"
        if error is None:
            return False, "passed"
        named = error.key == key or error.key.startswith(key + ".") or key.startswith(error.key + ".")
        return named and len(str(error).splitlines()) == 1, str(error)
