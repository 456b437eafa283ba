"""MAGVIT-v2's config; the published folders name no sizes, so the defaults are theirs."""

from typing import Any

from transformers import PretrainedConfig


class MAGVITv2Config(PretrainedConfig):
    """Sizes of a MAGVIT-v2 image tokenizer.

    Args:
        in_channels: channels of an image.
        base_channels: channels of the first convolution.
        channel_multipliers: width of each resolution level in units of `base_channels`, finest first; L levels halve
            the sides L − 1 times.
        encoder_blocks, decoder_blocks: numbers of residual blocks per level of the encoder and of the decoder, finest
            first.
        code_bits: bits per code, one for each channel of the latent; the codebook holds 2^code_bits codes.
        norm_groups: groups of every group norm.
        norm_eps: epsilon of every group norm.

    Raises:
        ValueError: sizes that do not fit each other.
    """

    model_type = "magvitv2"

    def __init__(
        self,
        in_channels: int = 3,
        base_channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4),
        encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4),
        decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3),
        code_bits: int = 13,
        norm_groups: int = 32,
        norm_eps: float = 1e-6,
        **kwargs: Any,
    ):
        for key, blocks in (("encoder_blocks", encoder_blocks), ("decoder_blocks", decoder_blocks)):
            if len(blocks) != len(channel_multipliers):
                raise ValueError(
                    f"MAGVIT-v2 config {key}={list(blocks)}: one number for each of the {len(channel_multipliers)} "
                    "channel_multipliers"
                )
        if not 1 <= code_bits <= 24:
            raise ValueError(f"MAGVIT-v2 config code_bits={code_bits}: allowed are 1 to 24")
        for multiplier in channel_multipliers:
            if base_channels * multiplier % norm_groups:
                raise ValueError(
                    f"MAGVIT-v2 config norm_groups={norm_groups} must divide the widths, among them "
                    f"{base_channels * multiplier}"
                )
        self.in_channels = in_channels
        self.base_channels = base_channels
        self.channel_multipliers = list(channel_multipliers)
        self.encoder_blocks = list(encoder_blocks)
        self.decoder_blocks = list(decoder_blocks)
        self.code_bits = code_bits
        self.norm_groups = norm_groups
        self.norm_eps = norm_eps
        super().__init__(**kwargs)

    @property
    def codebook_size(self) -> int:
        """Number of codes, 2^code_bits."""
        return 2**self.code_bits

    @property
    def downsampling(self) -> int:
        """Pixels per token along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of tokens of an image.

        Args:
            height, width: sides of the image in pixels.

        Raises:
            ValueError: a side that the tokenizer does not divide.
        """
        return token_grid(height, width, self.downsampling)


def token_grid(height: int, width: int, downsampling: int) -> tuple[int, int]:
    """Rows and columns of tokens of an image; 32 × 48 pixels at 16 pixels per token are 2 × 3 tokens.

    Args:
        height, width: sides of the image in pixels.
        downsampling: pixels per token along each side.

    Raises:
        ValueError: a side that the tokenizer does not divide.
    """
    for name, side in (("height", height), ("width", width)):
        if side < downsampling or side % downsampling:
            raise ValueError(f"image {name} {side} does not fit the tokenizer; allowed are multiples of {downsampling}")
    return height // downsampling, width // downsampling
