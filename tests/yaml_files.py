"""YAML files of configs, each parsed once: PyYAML takes longer for verl's thirty than Hydra does for all the rest."""

import functools
import os
import pickle

from omegaconf import OmegaConf

parse = OmegaConf.load


@functools.cache
def parsed(path, modified):
    """The config in a file, pickled."""
    return pickle.dumps(parse(path))


def parsed_once(file):
    """`OmegaConf.load` of an open file."""
    return pickle.loads(parsed(file.name, os.stat(file.name).st_mtime_ns))
