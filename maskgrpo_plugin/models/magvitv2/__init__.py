"""MAGVIT-v2 (arXiv 2310.05737): the image tokenizer of Show-o and MMaDA, with the published weight names."""

from maskgrpo_plugin.models.magvitv2.configuration_magvitv2 import MAGVITv2Config
from maskgrpo_plugin.models.magvitv2.modeling_magvitv2 import MAGVITv2

__all__ = ["MAGVITv2", "MAGVITv2Config"]
