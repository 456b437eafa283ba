"""Small random models of every family, for tests of what all of them must do."""

import torch
from transformers import AutoModelForCausalLM

from maskgrpo_plugin.models.a2d import A2DQwen2Config, A2DQwen3Config
from maskgrpo_plugin.models.dream import DreamConfig
from maskgrpo_plugin.models.fast_dllm_v2 import Fast_dLLM_QwenConfig
from maskgrpo_plugin.models.llada2_moe import LLaDA2MoeConfig
from maskgrpo_plugin.models.lladamoe import LLaDAMoEConfig
from maskgrpo_plugin.models.sdar import SDARConfig, SDARMoeConfig

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
    "lladamoe": (
        LLaDAMoEConfig,
        {"dense_intermediate_size": 48, "expert_intermediate_size": 16, "moe_layer_freq": [0, 1]}
        | {"num_experts": 6, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 8},
    ),
    "sdar": (SDARConfig, {"block_size": 4}),
    "sdar_moe": (
        SDARMoeConfig,
        {"block_size": 4, "moe_intermediate_size": 16, "num_experts": 6, "num_experts_per_tok": 2}
        | {"norm_topk_prob": True},
    ),
    "llada2_moe": (
        LLaDA2MoeConfig,
        {"block_size": 4, "moe_intermediate_size": 16, "num_experts": 8, "num_experts_per_tok": 3}
        | {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5},
    ),
    "fast_dllm_v2": (Fast_dLLM_QwenConfig, {"bd_size": 4}),
}
FAMILIES = list(CONFIGS)
BIDIRECTIONAL = ["dream", "a2d_qwen2", "a2d_qwen3", "lladamoe"]
EXPERTS = ["lladamoe", "sdar_moe", "llada2_moe"]


def make_config(name, **changes):
    config, own = CONFIGS[name]
    sizes = {key: value for key, value in SIZES.items() if not (name == "lladamoe" and key == "intermediate_size")}
    return config(**(sizes | own | changes))


def make_model(name, attention="sdpa", **changes):
    torch.manual_seed(0)
    config = make_config(name, **changes)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    for buffer, values in model.named_buffers():
        if buffer.endswith("e_score_correction_bias"):
            values.normal_(std=0.25)
    return model


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


def save_checkpoint(name, folder, tokenizer, **changes):
    """A checkpoint in the published form, for the mask token of the tokenizer alone to tell; returns the folder."""
    sizes = {"vocab_size": len(tokenizer), "mask_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    make_model(name, **(sizes | changes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
