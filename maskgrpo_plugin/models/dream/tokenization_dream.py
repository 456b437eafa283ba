"""Dream's tokenizer, which its folders name in code of their own: Qwen2's byte-pair encoding with further tokens."""

from transformers import AutoTokenizer, Qwen2Tokenizer

from maskgrpo_plugin.models.dream.configuration_dream import DreamConfig


class DreamTokenizer(Qwen2Tokenizer):
    """Qwen2's tokenizer under the published class name; the further tokens stand in the folder."""


AutoTokenizer.register(DreamConfig, DreamTokenizer, exist_ok=True)
