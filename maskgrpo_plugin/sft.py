"""`python -m maskgrpo_plugin.sft`: supervised training of masked diffusion models on verl's SFT trainer.

Under torchrun it runs on its processes, else as one process. The configs are `configs/sft_*.yaml`.
"""

import logging
import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from maskgrpo_plugin.errors import OptionError

ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}


def run(config: DictConfig) -> None:
    """Train as the config says.

    Raises:
        OptionError: a setting or a row that cannot work.
        CheckpointError: a checkpoint could not be written or read.
    """
    import torch
    import verl  # noqa: F401  (loads the plugin into its registries)
    from verl.utils.device import get_device_name
    from verl.utils.distributed import destroy_global_process_group, initialize_global_process_group

    from maskgrpo_plugin import extensions
    from maskgrpo_plugin.trainer.sft_checks import check_sft

    extensions.read_config(config)
    _alone_without_torchrun()
    check_sft(config, int(os.environ["WORLD_SIZE"]))
    if get_device_name() == "cpu":
        torch.distributed.init_process_group(backend="gloo")
    else:
        initialize_global_process_group()
    try:
        make_trainer(config).fit()
    finally:
        destroy_global_process_group()


def make_trainer(config: DictConfig) -> Any:
    """The trainer of a checked config, in a process of the run."""
    from maskgrpo_plugin.trainer.preference import PreferenceTrainer
    from maskgrpo_plugin.trainer.sft import DenoisingTrainer

    return DenoisingTrainer(config) if config.preference is None else PreferenceTrainer(config)


def _alone_without_torchrun() -> None:
    """What torchrun puts in the environment, for one process."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ.update(ALONE, MASTER_PORT=str(port))


def _verl_configs() -> str:
    spec = find_spec("verl")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / "trainer" / "config")


@hydra.main(config_path=_verl_configs(), config_name=None, version_base=None)
def _hydra_main(config: DictConfig) -> None:
    from maskgrpo_plugin.trainer.checkpoints import CheckpointError

    try:
        run(config)
    except (OptionError, CheckpointError) as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"maskgrpo_plugin: {' '.join(str(error).split())}\n")
        raise SystemExit(2 if isinstance(error, OptionError) else 1) from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command; the exit status is 0, 2 for a setting or a row that cannot work, 1 for what fails later."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if arguments is not None:
        sys.argv[1:] = arguments  # where Hydra reads them
    _hydra_main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
