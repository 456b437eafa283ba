"""Image tokenizers by the format of their checkpoint: MAGVIT-v2 (MMaDA), and diffusers' VQModel (Lumina-DiMOO)."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskgrpo_plugin.models.families.base import ImageTokenizerConfig
from maskgrpo_plugin.models.magvitv2 import MAGVITv2, MAGVITv2Config
from maskgrpo_plugin.models.magvitv2.configuration_magvitv2 import token_grid
from maskgrpo_plugin.models.magvitv2.modeling_magvitv2 import check_codes

DIFFUSERS_CLASS = "VQModel"


@dataclass(frozen=True)
class VQModelConfig:
    """What is read of the config of a diffusers VQModel.

    Attributes:
        codebook_size: number of codes.
        code_width: length of a code's vector.
        downsampling: pixels per token along each side.
    """

    codebook_size: int
    code_width: int
    downsampling: int

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "VQModelConfig":
        """Read a published config.json."""
        width = values.get("vq_embed_dim") or values["latent_channels"]
        return cls(values["num_vq_embeddings"], width, 2 ** (len(values["block_out_channels"]) - 1))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image; see `token_grid`."""
        return token_grid(height, width, self.downsampling)


class DiffusersVQ(nn.Module):
    """A diffusers VQModel behind the interface of `MAGVITv2`; its own pixels are in [0, 1].

    Args:
        model: the VQModel.
        config: see `VQModelConfig`.
    """

    def __init__(self, model: nn.Module, config: VQModelConfig):
        super().__init__()
        self.model: Any = model
        self.config = config

    @torch.no_grad()
    def get_code(self, pixels: Tensor) -> Tensor:
        """Codes (B, h·w) of images (B, 3, H, W) in [-1, 1]."""
        latents = self.model.encode((pixels + 1) / 2).latents
        indices = self.model.quantize(latents)[2][2]
        return indices.reshape(pixels.shape[0], -1)

    @torch.no_grad()
    def decode_code(self, indices: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images (B, 3, H, W), about [-1, 1], of codes (B, h·w); see `MAGVITv2.decode_code`."""
        grid = check_codes(indices, grid, self.config.codebook_size)
        shape = (indices.shape[0], *grid, self.config.code_width)
        codes = indices.reshape(shape[:-1])
        if not self.model.config.lookup_from_codebook:
            codes = self.model.quantize.get_codebook_entry(codes, shape)
        return self.model.decode(codes, force_not_quantize=True, shape=shape).sample * 2 - 1


def image_tokenizer_config(path: str) -> ImageTokenizerConfig:
    """The config of the image tokenizer in the folder `path`.

    Raises:
        ModuleNotFoundError: a diffusers checkpoint, and diffusers is not installed.
        ValueError: the folder holds a model of another kind.
    """
    file = Path(path).expanduser() / "config.json"
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if values.get("_class_name") == DIFFUSERS_CLASS:
        if importlib.util.find_spec("diffusers") is None:
            raise ModuleNotFoundError(f"{path} is a diffusers checkpoint: pip install 'maskgrpo-plugin[dimoo]'")
        return VQModelConfig.from_dict(values)
    kind = values.get("model_type", MAGVITv2Config.model_type)  # published folders name none
    if kind != MAGVITv2Config.model_type:
        raise ValueError(f"{path} holds no image tokenizer but a model of the type {kind!r}")
    return MAGVITv2Config.from_pretrained(path)


def load_image_tokenizer(path: str, device: torch.device | str = "cpu") -> MAGVITv2 | DiffusersVQ:
    """The image tokenizer in the folder `path`, frozen, on `device`.

    Raises:
        ModuleNotFoundError: a diffusers checkpoint, and diffusers is not installed.
        FileNotFoundError, ValueError: see `MAGVITv2.from_pretrained`.
    """
    model: Any
    config = image_tokenizer_config(path)
    if isinstance(config, VQModelConfig):
        from diffusers import VQModel

        model = DiffusersVQ(VQModel.from_pretrained(Path(path).expanduser()), config)
    else:
        model = MAGVITv2.from_pretrained(path)
    return model.to(device).eval().requires_grad_(False)
