"""Small random models of every family, for tests of what all of them must do."""

import torch
from transformers import AutoModelForCausalLM

from maskgrpo_plugin.models.a2d import A2DQwen2Config, A2DQwen3Config
from maskgrpo_plugin.models.dream import DreamConfig

MASK, VOCABULARY = 39, 40
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "mask_token_id": MASK,
}
CONFIGS = {
    "dream": (DreamConfig, {}),
    "a2d_qwen2": (A2DQwen2Config, {"tie_word_embeddings": True}),
    "a2d_qwen3": (A2DQwen3Config, {"tie_word_embeddings": True}),
    "a2d_qwen3_blocks": (A2DQwen3Config, {"block_size": 4}),
}
FAMILIES = list(CONFIGS)
BIDIRECTIONAL = [name for name, (config, changes) in CONFIGS.items() if not changes.get("block_size")]


def make_config(name, **changes):
    config, own = CONFIGS[name]
    return config(**(SIZES | own | changes))


def make_model(name, attention="sdpa", **changes):
    torch.manual_seed(0)
    config = make_config(name, **changes)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


def allowed(mask, block_length):
    """What attends to what, written out: (B, L) -> (B, 1, L, L), blocks counted over tokens alone."""
    rows, width = mask.shape
    block = (mask.cumsum(-1) - 1).clamp(min=0) // (block_length or 1)
    found = torch.zeros(rows, 1, width, width, dtype=torch.bool)
    for row in range(rows):
        for query in range(width):
            for key in range(width):
                behind = block_length is None or block[row, key] <= block[row, query]
                found[row, 0, query, key] = bool(mask[row, key]) and bool(behind)
    return found
