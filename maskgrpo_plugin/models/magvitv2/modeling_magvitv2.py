"""MAGVIT-v2 in plain PyTorch: convolutional encoder, lookup-free quantisation, convolutional decoder."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from maskgrpo_plugin.models.grids import filled_grid
from maskgrpo_plugin.models.magvitv2.configuration_magvitv2 import MAGVITv2Config
from maskgrpo_plugin.models.weight_files import check_loaded

WEIGHT_FILES = (
    "model.safetensors",
    "pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors",
    "pytorch_model.bin",
)


def bits_to_indices(bits: Tensor) -> Tensor:
    """Number codes by their bits, the first channel being the most significant; (B, C, h, w) bool -> (B, h·w) int64."""
    weights = 2 ** torch.arange(bits.shape[1] - 1, -1, -1, device=bits.device)
    return (bits.long() * weights[None, :, None, None]).sum(1).flatten(1)


def indices_to_codes(indices: Tensor, code_bits: int, grid: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Codes of ±1 from their numbers, the inverse of `bits_to_indices`; (B, h·w) -> (B, C, h, w)."""
    shifts = torch.arange(code_bits - 1, -1, -1, device=indices.device)
    bits = (indices.long()[:, None] >> shifts[None, :, None]) & 1
    return (2 * bits - 1).to(dtype).unflatten(2, grid)


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside a shortcut; (B, C, h, w) -> (B, C', h, w)."""

    def __init__(self, width_in: int, width_out: int, config: MAGVITv2Config):
        super().__init__()
        self.norm1 = nn.GroupNorm(config.norm_groups, width_in, eps=config.norm_eps)
        self.conv1 = nn.Conv2d(width_in, width_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(config.norm_groups, width_out, eps=config.norm_eps)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(width_in, width_out, 1) if width_in != width_out else None

    def forward(self, x: Tensor) -> Tensor:
        """Add what the convolutions find to the (projected) input."""
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.nin_shortcut is None else self.nin_shortcut(x))


class SpatialAttention(nn.Module):
    """Self-attention of one head over all places; (B, C, h, w) -> (B, C, h, w)."""

    def __init__(self, width: int, config: MAGVITv2Config):
        super().__init__()
        self.norm = nn.GroupNorm(config.norm_groups, width, eps=config.norm_eps)
        self.q = nn.Conv2d(width, width, 1)
        self.k = nn.Conv2d(width, width, 1)
        self.v = nn.Conv2d(width, width, 1)
        self.proj_out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Add what each place reads from all places."""
        h = self.norm(x)
        query, key, value = (layer(h).flatten(2).transpose(1, 2)[:, None] for layer in (self.q, self.k, self.v))
        attended = F.scaled_dot_product_attention(query, key, value)[:, 0]
        return x + self.proj_out(attended.transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """Halve the sides: a strided convolution that is padded at the right and the bottom only."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the sides: nearest neighbours, then a convolution."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks of one resolution, and the step to the next one where there is one."""

    def __init__(self, widths: tuple[int, int], blocks: int, config: MAGVITv2Config, resampling: str | None):
        super().__init__()
        width_in, width_out = widths
        self.block = nn.ModuleList(
            ResidualBlock(width_in if i == 0 else width_out, width_out, config) for i in range(blocks)
        )
        self.downsample = Downsample(width_out) if resampling == "down" else None
        self.upsample = Upsample(width_out) if resampling == "up" else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', h', w')."""
        for block in self.block:
            x = block(x)
        if self.downsample is not None:
            return self.downsample(x)
        return x if self.upsample is None else self.upsample(x)


class Middle(nn.Module):
    """What lies between encoder or decoder levels and the latent: block, attention, block."""

    def __init__(self, width: int, config: MAGVITv2Config):
        super().__init__()
        self.block_1 = ResidualBlock(width, width, config)
        self.attn_1 = SpatialAttention(width, config)
        self.block_2 = ResidualBlock(width, width, config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    """Pixels to latents, coarser level by level; (B, 3, H, W) -> (B, code_bits, h, w)."""

    def __init__(self, config: MAGVITv2Config):
        super().__init__()
        widths = [config.base_channels, *(config.base_channels * m for m in config.channel_multipliers)]
        last = len(widths) - 2
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down = nn.ModuleList(
            Level((widths[i], widths[i + 1]), blocks, config, "down" if i < last else None)
            for i, blocks in enumerate(config.encoder_blocks)
        )
        self.mid = Middle(widths[-1], config)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[-1], config.code_bits, 3, padding=1)
        self.quant_conv = nn.Conv2d(config.code_bits, config.code_bits, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """Latents before quantisation."""
        x = self.conv_in(pixels)
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """Codes to pixels, finer level by level; (B, code_bits, h, w) -> (B, 3, H, W)."""

    def __init__(self, config: MAGVITv2Config):
        super().__init__()
        widths = [config.base_channels, *(config.base_channels * m for m in config.channel_multipliers)]
        self.conv_in = nn.Conv2d(config.code_bits, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], config)
        self.up = nn.ModuleList(
            Level((widths[i + 1], widths[i]), blocks, config, "up" if i > 0 else None)
            for i, blocks in enumerate(config.decoder_blocks)
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.in_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.code_bits, config.code_bits, 1)

    def forward(self, codes: Tensor) -> Tensor:
        """Pixels, unclipped."""
        x = self.mid(self.conv_in(self.post_quant_conv(codes)))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class MAGVITv2(PreTrainedModel):
    """Image tokenizer with lookup-free quantisation (arXiv 2310.05737): a code is the signs of the latent's channels.

    `from_pretrained` also takes the published folders, whose config names no sizes and whose weights lie in
    `pytorch_model.safetensors` or `pytorch_model.bin`.
    """

    config_class = MAGVITv2Config
    base_model_prefix = "magvitv2"
    main_input_name = "pixels"

    def __init__(self, config: MAGVITv2Config):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d | nn.GroupNorm):
            module.reset_parameters()

    def encode(self, pixels: Tensor) -> Tensor:
        """Latents before quantisation; (B, 3, H, W) in [-1, 1] -> (B, code_bits, h, w).

        Raises:
            ValueError: sides that the tokenizer does not divide, or the wrong number of channels.
        """
        if pixels.dim() != 4 or pixels.shape[1] != self.config.in_channels:
            raise ValueError(f"pixels must be (B, {self.config.in_channels}, H, W), got {tuple(pixels.shape)}")
        self.config.grid(*pixels.shape[2:])
        return self.encoder(pixels)

    @torch.no_grad()
    def get_code(self, pixels: Tensor) -> Tensor:
        """Tokens of images, row by row from the top left.

        Args:
            pixels: (B, 3, H, W), values in [-1, 1].

        Returns:
            (B, h·w) int64 in [0, codebook size).

        Raises:
            ValueError: see `encode`.
        """
        return bits_to_indices(self.encode(pixels) > 0)

    @torch.no_grad()
    def decode_code(self, indices: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Images of tokens.

        Args:
            indices: (B, h·w) integers in [0, codebook size), as `get_code` gives them.
            grid: (h, w); None: a square.

        Returns:
            (B, 3, H, W) pixels, about [-1, 1] and not clipped.

        Raises:
            ValueError: tokens that do not fill the grid, or an index outside the codebook.
        """
        grid = check_codes(indices, grid, self.config.codebook_size)
        return self.decode(indices_to_codes(indices, self.config.code_bits, grid, self.dtype))

    def decode(self, codes: Tensor) -> Tensor:
        """Images of codes; (B, code_bits, h, w) of ±1 -> (B, 3, H, W)."""
        return self.decoder(codes)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstruct images; gradients pass the quantisation as if it were the identity.

        Args:
            pixels: (B, 3, H, W), values in [-1, 1].

        Returns:
            Pixels (B, 3, H, W) and the latents before quantisation (B, code_bits, h, w).
        """
        latents = self.encode(pixels)
        codes = torch.where(latents > 0, 1.0, -1.0).to(latents.dtype)
        return self.decode(latents + (codes - latents).detach()), latents

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> "MAGVITv2":
        """Load a folder (or hub name): the plugin's own, or a published one; see transformers' `from_pretrained`.

        Raises:
            FileNotFoundError: the folder holds none of `WEIGHT_FILES`.
            ValueError: the weights do not fit the config, or some are missing.
        """
        folder = Path(str(pretrained_model_name_or_path)).expanduser()
        if not folder.is_dir():
            from huggingface_hub import snapshot_download

            folder = Path(
                snapshot_download(str(pretrained_model_name_or_path), allow_patterns=["*.json", *WEIGHT_FILES])
            )
        found = next((name for name in WEIGHT_FILES if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"{folder} holds no image tokenizer: none of {', '.join(WEIGHT_FILES)}")
        source: Path | None = folder
        if found != WEIGHT_FILES[0]:
            source = None
            kwargs["config"] = kwargs.get("config") or MAGVITv2Config.from_pretrained(folder)
            kwargs["state_dict"] = _read(folder / found)
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}  # so that both are in the report
        model, info = super().from_pretrained(source, *args, **kwargs)
        check_loaded(str(folder), info)
        return model


def check_codes(indices: Tensor, grid: tuple[int, int] | None, codebook_size: int) -> tuple[int, int]:
    """The grid that (B, h·w) codes fill; see `MAGVITv2.decode_code` for arguments and errors."""
    if indices.dim() != 2:
        raise ValueError(f"indices must be (B, h·w), got {tuple(indices.shape)}")
    grid = filled_grid(indices.shape[1], grid)
    if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < codebook_size:
        raise ValueError(
            f"image tokens {int(indices.min())} to {int(indices.max())}: allowed are 0 to {codebook_size - 1}, the "
            "codebook"
        )
    return grid


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file or of a pickle, of which only tensors are read."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)
