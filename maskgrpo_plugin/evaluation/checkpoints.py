"""What can be evaluated: published folders, verl's checkpoints and LoRA adapters, all brought to a transformers folder.

verl's own merger casts to bfloat16, which would change a float32 run's model, so its shards are put together here.
"""

import hashlib
import json
import logging
import os
import re
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.files import private_temporary_folder, written_whole
from maskgrpo_plugin.run_files import POINTER

logger = logging.getLogger(__name__)

_SHARD = re.compile(r"model_world_size_(\d+)_rank_(\d+)\.pt")
MARK = "merged_from.json"  # in a merged folder: what it was made from
_WEIGHTS = (".safetensors", ".bin", ".pt")


def resolve_checkpoint(model: str, merged_dir: Path, base_model: str | None = None) -> str:
    """Where transformers can load `model` from.

    Args:
        model: a published folder or name on the hub, as it is; a folder of verl's checkpoints (the latest is taken),
            one of its `global_step_N`, or that one's `actor`; or a PEFT adapter.
        merged_dir: folder for the merged model of the latter two; one that an earlier call left for the same
            checkpoint is used again.
        base_model: what an adapter goes onto; None: the base that the adapter names.

    Returns:
        a local folder, or the name on the hub.

    Raises:
        OptionError: `model` is none of these, or has no base.
    """
    folder = Path(os.path.expanduser(model))
    if not folder.is_dir():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", model) and not folder.parent.is_dir():
            return model
        raise OptionError("--model", model, "the folder does not exist")
    if (folder / "config.json").is_file():
        return str(folder)
    actor = _actor_folder(folder)
    if actor is None and not (folder / "adapter_config.json").is_file():
        raise OptionError(
            "--model",
            model,
            "it holds neither config.json, nor adapter_config.json, nor verl's model_world_size_…_rank_….pt",
        )
    mark = {"source": fingerprint(model), "base": fingerprint(base_model) if base_model else None}
    return str(_merged(actor or folder, actor is not None, merged_dir, base_model, mark))


def temporary_merged_dir(model: str) -> Path:
    """A folder for the merged model of a checkpoint, the same one in every call, in the user's own temporary folder."""
    return private_temporary_folder() / f"maskgrpo_merged_{zlib.crc32(fingerprint(model).encode()):08x}"


def fingerprint(model: str) -> str:
    """Names a checkpoint: its path and, where it is a local folder, the names, sizes and times of its weight files."""
    folder = Path(os.path.expanduser(model))
    if not folder.is_dir():
        return model
    actor = _actor_folder(folder) or folder
    files = sorted(file for file in actor.iterdir() if file.suffix in _WEIGHTS)
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return f"{actor.resolve()}#{hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:12]}"


def merge_shards(folder: Path) -> dict[str, Tensor]:
    """The whole tensors of a verl FSDP checkpoint, in their own precision.

    Args:
        folder: with `model_world_size_<W>_rank_<r>.pt` for each rank r; they are read with `weights_only`.

    Raises:
        OptionError: ranks are missing, or left from runs on other numbers of ranks.
    """
    found = [(m, file) for file in folder.iterdir() if (m := _SHARD.fullmatch(file.name))]
    ranks = {(int(m[1]), int(m[2])): file for m, file in found}
    world = min((world for world, _ in ranks), default=0)
    if sorted(ranks) != [(world, rank) for rank in range(world)] or not ranks:
        names = ", ".join(sorted(file.name for _, file in found))
        raise OptionError("--model", str(folder), f"it must hold one file for each rank of one run; it has {names}")
    shards = [torch.load(ranks[key], map_location="cpu", weights_only=True) for key in sorted(ranks)]
    return {name: _whole([shard.pop(name) for shard in shards]) for name in list(shards[0])}


def merge_lora(state: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Fold PEFT's LoRA tensors into the weights they belong to: W + scale · B A, in float32.

    Args:
        state: parameters under PEFT's names (`base_model.model.….base_layer.weight`, `….lora_A.default.weight`).
        scale: alpha / rank.

    Returns:
        the parameters under the plain model's names.
    """
    plain = {_plain_name(name): tensor for name, tensor in state.items() if "lora_" not in name}
    for name, down in state.items():
        if ".lora_A." not in name:
            continue
        target = f"{_plain_name(name.split('.lora_A.')[0])}.weight"
        up = state[name.replace(".lora_A.", ".lora_B.")]
        weight = plain[target]
        plain[target] = (weight.float() + scale * (up.float() @ down.float())).to(weight.dtype)
    return plain


def _actor_folder(folder: Path) -> Path | None:
    """The folder of the shards within a folder of verl's checkpoints, a `global_step_N` or an `actor`; None: none."""
    latest = folder / POINTER
    if latest.is_file():
        folder = folder / f"global_step_{latest.read_text().strip()}"
    for candidate in (folder, folder / "actor"):
        if candidate.is_dir() and any(_SHARD.fullmatch(file.name) for file in candidate.iterdir()):
            return candidate
    return None


def _merged(folder: Path, is_sharded: bool, target: Path, base_model: str | None, mark: dict[str, Any]) -> Path:
    mark_file = target / MARK
    if mark_file.is_file() and json.loads(mark_file.read_text()) == mark:
        return target
    model, tokenizer = (_from_shards if is_sharded else _from_adapter)(folder, base_model)
    with written_whole(target) as unfinished:
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)
        (unfinished / mark_file.name).write_text(json.dumps(mark))
    logger.info("merged %s into %s", folder, target)
    return target


def _from_shards(folder: Path, base_model: str | None) -> tuple[Any, Any]:
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    described = folder / "huggingface"
    state = merge_shards(folder)
    if any("lora_" in name for name in state):
        if all("lora_" in name for name in state):
            base = AutoModelForCausalLM.from_pretrained(_base(folder, base_model), dtype="auto")
            state |= base.state_dict()
        settings = json.loads((folder / "lora_train_meta.json").read_text())
        state = merge_lora(state, settings["lora_alpha"] / settings["r"])
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(described))
    model.load_state_dict(state, assign=True)
    model.tie_weights()
    model.config.dtype = next(model.parameters()).dtype
    return model, AutoTokenizer.from_pretrained(described)


def _from_adapter(folder: Path, base_model: str | None) -> tuple[Any, Any]:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = _base(folder, base_model)
    model = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
    merged = PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    has_tokenizer = (folder / "tokenizer_config.json").is_file()
    return merged, AutoTokenizer.from_pretrained(folder if has_tokenizer else base)


def _base(folder: Path, base_model: str | None) -> str:
    settings = folder / "adapter_config.json"
    named = json.loads(settings.read_text()).get("base_model_name_or_path") if settings.is_file() else None
    base = base_model or named
    if not base:
        raise OptionError("--base-model", base_model, f"name the model that the adapter in {folder} goes onto")
    return os.path.expanduser(base)


def _plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def _whole(parts: list[Tensor]) -> Tensor:
    """One parameter from each rank's part of it."""
    first = parts[0]
    if not isinstance(first, DTensor):
        return first
    placement = first.placements[-1]  # type: ignore[index]
    if not placement.is_shard():
        return first.to_local()
    shards = first.device_mesh.mesh.shape[-1]  # further ranks hold copies (hybrid sharding)
    return torch.cat([part.to_local() for part in parts[:shards]], dim=placement.dim)  # type: ignore[union-attr,attr-defined]
