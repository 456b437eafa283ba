"""Mixtures of experts: routers in float32, and checkpoints with one entry per expert.

transformers keeps the experts of a layer as one tensor each for their inner and their outer projections, which its
expert functions compute together. Published checkpoints name every expert; so do those that are saved here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PretrainedConfig
from transformers.conversion_mapping import get_checkpoint_conversion_mapping, register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightTransform
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock, Qwen3MoeTopKRouter


class ExpertsMixin:
    """A model whose layers hold transformers' experts: it may compute them by any of its expert functions.

    transformers looks for them in the file of the class, where an inherited layer does not stand.
    """

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return True


class Float32Router(Qwen3MoeTopKRouter):
    """Chooses the k experts of each token by a softmax over all; computed in float32, also under automatic casts.

    Args:
        config: of the model.
        normalise: whether the k weights are divided by their sum.
    """

    def __init__(self, config: PretrainedConfig, *, normalise: bool):
        super().__init__(config)
        self.norm_topk_prob = normalise

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(…, D) -> logits (N, experts) float32, weights (N, k) in the input's dtype, experts (N, k)."""
        logits = linear_in_float32(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        weights, chosen = logits.softmax(-1).topk(self.top_k, dim=-1)
        if self.norm_topk_prob:
            weights = weights / weights.sum(-1, keepdim=True)
        return logits, weights.to(hidden_states.dtype), chosen


def linear_in_float32(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear` in float32 whatever the arguments are in, also under automatic casts; (N, D), (E, D) -> (N, E)."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), weight.float())


def route_in_float32(model: nn.Module, config: PretrainedConfig, *, normalise: bool) -> None:
    """Give every Qwen3-MoE layer of a model a `Float32Router`, with the parameter of the router that it had."""
    for module in model.modules():
        if isinstance(module, Qwen3MoeSparseMoeBlock):
            router = Float32Router(config, normalise=normalise)
            router.weight = module.gate.weight
            module.gate = router


def register_expert_names(model_type: str, further: Sequence[WeightTransform] = ()) -> None:
    """Have checkpoints of a `model_type` loaded from and saved to `mlp.experts.N.{gate,up,down}_proj.weight`.

    Args:
        model_type: of the checkpoints.
        further: transformers' conversions for the names of other weights.
    """
    experts = get_checkpoint_conversion_mapping("qwen2_moe")
    register_checkpoint_conversion_mapping(model_type, [*further, *experts], overwrite=True)


def expert_parts(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The experts of a layer under their published names, as views; empty for any other parameter.

    `a.mlp.experts.down_proj` (E, D, I) gives `a.mlp.experts.0.down_proj.weight` (D, I) and so on; the first and the
    second half of the rows of `gate_up_proj` (E, 2·I, D) are `gate_proj` and `up_proj`.
    """
    layer, _, kind = name.rpartition(".")
    if not layer.endswith(".mlp.experts") or tensor.dim() != 3:
        return {}
    kinds = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[kind]
    parts = {part: tensor.chunk(len(kinds), dim=1)[n] for n, part in enumerate(kinds)}
    return {f"{layer}.{n}.{part}.weight": half[n] for part, half in parts.items() for n in range(tensor.shape[0])}


@contextmanager
def recorded_experts(model: nn.Module) -> Iterator[list[Tensor]]:
    """The experts that each layer chooses in the passes of this context, in their order: (N, k) of N tokens."""
    chosen: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(lambda _, given: chosen.append(given[1].detach()))
        for name, module in model.named_modules()
        if name.endswith(".mlp.experts")
    ]
    try:
        yield chosen
    finally:
        for hook in hooks:
            hook.remove()


def routing_difference(first: Tensor, second: Tensor) -> float:
    """Share of the choices of one router, (N, k) experts, that another did not make for the same token; in [0, 1].

    >>> routing_difference(torch.tensor([[0, 1], [2, 3]]), torch.tensor([[1, 0], [2, 5]]))
    0.25
    """
    shared = (first.unsqueeze(-1) == second.unsqueeze(-2)).any(-1)
    return 1 - shared.float().mean().item()
