"""Build entry point. It says what the packages are; the metadata is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["maskgrpo_plugin*", "maskgrpo_cli*"]), "hydra_plugins", "maskgrpo_configs"],
    package_dir={"maskgrpo_configs": "configs"},
)
