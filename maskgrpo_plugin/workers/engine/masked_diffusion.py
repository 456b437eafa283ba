"""The masked-diffusion FSDP engine: log-probabilities of masked tokens, level by level, behind verl's interface."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from tensordict import TensorDict
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM
from verl.utils import tensordict_utils as tu
from verl.utils.device import get_device_id, get_device_name
from verl.utils.fsdp_utils import get_init_weight_context_manager, merged_lora_context, normalize_peft_param_name
from verl.utils.metric import AggregationType, Metric
from verl.utils.torch_dtypes import PrecisionType
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
from verl.workers.engine.utils import detach_tree

from maskgrpo_plugin.diffusion.estimation import UNCOND_IDS, EstimationPlan, level_views
from maskgrpo_plugin.models.families import ImageFamily, build_family
from maskgrpo_plugin.workers.engine.on_cpu import CPUCapableFSDPEngine


def pad_rows(rows: torch.Tensor, padding: float | int | bool = 0) -> torch.Tensor:
    """Right-pad a jagged (B, j) tensor to (B, max j)."""
    return rows.to_padded_tensor(padding=padding)


def jag(padded: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
    """Pack the first `offsets.diff()` columns of each row of (B, L, …) into a jagged tensor."""
    lengths = offsets.diff()
    valid = torch.arange(padded.shape[1], device=padded.device) < lengths.unsqueeze(1)
    return torch.nested.nested_tensor_from_jagged(padded[valid], offsets)


def place_responses(rows: Any, prompt_lengths: torch.Tensor, length: int, padding: Any) -> torch.Tensor:
    """Put jagged response values (B, r) at their places on the right-padded canvas.

    Args:
        rows: jagged (B, r).
        prompt_lengths: (B,) tokens before each response.
        length: L, columns of the canvas.
        padding: value everywhere else.

    Returns:
        (B, L).
    """
    values = rows.values()
    lengths = rows.offsets().diff()
    canvas = torch.full((lengths.numel(), length), padding, dtype=values.dtype, device=values.device)
    row_index = torch.repeat_interleave(torch.arange(lengths.numel(), device=values.device), lengths)
    within = torch.arange(values.numel(), device=values.device) - rows.offsets()[:-1][row_index]
    canvas[row_index, prompt_lengths[row_index] + within] = values
    return canvas


def swap_prompts(rows: Any, prompts: Any, prompt_lengths: torch.Tensor) -> torch.Tensor:
    """Rows with other prompts before their responses.

    Args:
        rows: jagged (B, j) of prompt and response values.
        prompts: jagged (B, p'), the values that replace each row's prompt.
        prompt_lengths: (B,) length of the prompts in `rows`.

    Returns:
        Jagged (B, p' + r).
    """
    pieces = [
        torch.cat([prompt.to(row.dtype), row[length:]])
        for row, prompt, length in zip(rows.unbind(), prompts.unbind(), prompt_lengths.tolist(), strict=True)
    ]
    return torch.nested.as_nested_tensor(pieces, layout=torch.jagged)


def stack_padded(first: torch.Tensor, second: torch.Tensor, padding: float | int | bool = 0) -> torch.Tensor:
    """Rows of two jagged tensors (B, j) and (B, j'), right-padded to one length; (2B, L)."""
    return pad_rows(torch.nested.as_nested_tensor([*first.unbind(), *second.unbind()], layout=torch.jagged), padding)


@EngineRegistry.register(model_type="masked_diffusion", backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class MaskedDiffusionEngine(CPUCapableFSDPEngine, FSDPEngineWithLMHead):
    """Actor and reference of a masked diffusion model.

    The batch carries an estimation plan (non-tensor `estimation`) and each row's `mask_key`. `infer_batch` returns
    the log-probabilities of every level in one call, `log_probs` jagged (B, j, μ); `train_batch` takes the level
    from the non-tensor `level`. Values lie where verl's autoregressive engine puts them (the value of the token at
    position n is at n − 1), so verl's losses and trainer code read them unchanged.
    """

    def _build_module(self) -> nn.Module:
        dtype = self.engine_config.model_dtype
        if dtype is None:
            dtype = torch.bfloat16 if self.engine_config.forward_only else torch.float32
        dtype = PrecisionType.to_dtype(dtype)
        hf_config = self.model_config.hf_config
        init_context = get_init_weight_context_manager(
            use_meta_tensor=not hf_config.tie_word_embeddings, mesh=self.device_mesh
        )
        with init_context():
            module = AutoModelForCausalLM.from_pretrained(self.model_config.local_path, dtype=dtype, config=hf_config)
        module.to(dtype)
        family = build_family(hf_config, self.model_config.tokenizer)
        self._image_slice = family.image.vocab_slice if isinstance(family, ImageFamily) else None
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return module

    def forward_backward_batch(
        self, data: TensorDict, loss_function: Callable | None, forward_only: bool = False
    ) -> dict[str, Any]:
        """Run one level with gradients, or every level of the plan without.

        Args:
            data: jagged batch with `input_ids`, `prompts`, `responses`, `response_mask`, `mask_key`, and the
                non-tensors `estimation` and, for training, `level`.
            loss_function: verl's loss; None for log-probabilities alone.
            forward_only: no gradients, all levels.

        Returns:
            verl's output dict (`model_output`, `loss`, `metrics`).
        """
        data = data.to(get_device_id())
        plan = EstimationPlan(**tu.get_non_tensor_data(data, "estimation", default=None))
        if not forward_only:
            level = tu.get_non_tensor_data(data, "level", default=0)
            return super().forward_backward_batch(self._at_level(data, plan, level), loss_function, False)
        outputs = [
            super(MaskedDiffusionEngine, self).forward_backward_batch(
                self._at_level(data, plan, level), loss_function, True
            )
            for level in range(len(plan))
        ]
        merged = outputs[0]
        merged["model_output"] = {
            key: torch.nested.nested_tensor_from_jagged(
                torch.stack([output["model_output"][key].values() for output in outputs], dim=-1),
                outputs[0]["model_output"][key].offsets(),
            )
            for key in outputs[0]["model_output"]
        }
        return merged

    def _at_level(self, data: TensorDict, plan: EstimationPlan, level: int) -> TensorDict:
        """Shallow copy of `data` with the level's canvases, masks and old and reference log-probabilities."""
        data = data.clone(recurse=False)
        input_ids, responses = data["input_ids"], data["responses"]
        prompt_lengths = data["prompts"].offsets().diff()
        lengths = input_ids.offsets().diff()
        tokens = pad_rows(input_ids)
        length = tokens.shape[1]
        attended = torch.arange(length, device=tokens.device) < lengths.unsqueeze(1)
        learnable = place_responses(data["response_mask"].bool(), prompt_lengths, length, False)
        reveal_step = None
        if plan.mode == "trajectory":
            reveal_step = place_responses(data["reveal_step"], prompt_lengths, length, -1)
        views, attended = level_views(
            tokens,
            learnable,
            attended,
            data["mask_key"],
            plan,
            level,
            mask_token_id=self.model_config.hf_config.mask_token_id,
            reveal_step=reveal_step,
        )
        for index, view in enumerate(views):
            data[f"noisy_{index}"] = jag(view.noisy, input_ids.offsets())
            data[f"masked_{index}"] = jag(view.masked, input_ids.offsets())
        data["attended"] = jag(attended, input_ids.offsets())
        if plan.cfg_scale > 0:
            self._add_uncond(data, prompt_lengths, len(views))
        masked = torch.stack([view.masked for view in views]).any(0)
        is_response = torch.arange(length, device=tokens.device) >= prompt_lengths.unsqueeze(1)
        is_response = is_response & (torch.arange(length, device=tokens.device) < lengths.unsqueeze(1))
        in_loss = torch.nested.nested_tensor_from_jagged(masked[is_response], responses.offsets())
        data["response_mask"] = in_loss
        data["loss_mask"] = in_loss
        data["maskable_tokens"] = views[0].maskable.sum(-1)
        for key in ("old_log_probs", "ref_log_prob"):
            if key in data.keys() and data[key].dim() == 3:
                data[key] = torch.nested.nested_tensor_from_jagged(data[key].values()[..., level], data[key].offsets())
        tu.assign_non_tensor(
            data, num_views=len(views), level_weight=plan.weights[level], guidance_scale=plan.cfg_scale
        )
        return data

    @staticmethod
    def _add_uncond(data: TensorDict, prompt_lengths: torch.Tensor, views: int) -> None:
        """Add each view's canvas with the prompt of `uncond_ids`, its mask, and what it attends to."""
        uncond = data[UNCOND_IDS]
        nothing = torch.nested.nested_tensor_from_jagged(torch.zeros_like(uncond.values()), uncond.offsets())
        everything = torch.nested.nested_tensor_from_jagged(torch.ones_like(uncond.values()), uncond.offsets())
        for index in range(views):
            data[f"uncond_noisy_{index}"] = swap_prompts(data[f"noisy_{index}"], uncond, prompt_lengths)
            data[f"uncond_masked_{index}"] = swap_prompts(data[f"masked_{index}"], nothing, prompt_lengths)
        data["uncond_attended"] = swap_prompts(data["attended"], everything, prompt_lengths)

    def forward_step(
        self, micro_batch: TensorDict, loss_function: Callable | None, forward_only: bool
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """One micro-batch: forward each view, gather the masked tokens' log-probabilities, apply the loss.

        Returns:
            The loss scaled by the level's weight, and verl's per-micro-batch output dict.
        """
        micro_batch = micro_batch.to(get_device_id())
        uses_float32 = self._autocast_dtype == torch.float32
        autocast = nullcontext() if uses_float32 else torch.autocast(get_device_name(), dtype=self._autocast_dtype)
        with autocast:
            model_output = self._score(micro_batch)
            if loss_function is None:
                loss, metrics = torch.tensor(1.0, device=get_device_name()), {}
            else:
                loss, metrics = loss_function(
                    model_output=model_output, data=micro_batch, dp_group=self.get_data_parallel_group()
                )
                loss = loss * tu.get_non_tensor_data(micro_batch, "level_weight", default=1.0)
                share = micro_batch["loss_mask"].values().sum() / micro_batch["maskable_tokens"].sum().clamp(min=1)
                metrics["masked_share"] = Metric(value=share.item(), aggregation=AggregationType.MEAN)
        return loss, {"model_output": detach_tree(model_output), "loss": loss.detach().item(), "metrics": metrics}

    def _score(self, micro_batch: TensorDict) -> dict[str, torch.Tensor]:
        """Log-probabilities (and entropies, where asked for) of masked tokens as jagged (B, j); 0 elsewhere."""
        with_entropy = tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False)
        input_ids = micro_batch["input_ids"]
        offsets = input_ids.offsets()
        targets = pad_rows(input_ids)
        guidance_scale = tu.get_non_tensor_data(micro_batch, "guidance_scale", default=0.0)

        def canvases(name: str, padding: int | bool) -> torch.Tensor:
            """(B, L), or with guidance (2B, L) with the canvases without the prompt's text after the others."""
            if guidance_scale == 0:
                return pad_rows(micro_batch[name], padding)
            return stack_padded(micro_batch[name], micro_batch[f"uncond_{name}"], padding)

        attended = canvases("attended", False)
        attention_mask = None if bool(attended.all()) else attended.long()
        sums: dict[str, torch.Tensor] = {}
        for index in range(tu.get_non_tensor_data(micro_batch, "num_views", default=1)):
            masked = pad_rows(micro_batch[f"masked_{index}"], False)
            output = self.module(
                input_ids=canvases(f"noisy_{index}", 0),
                attention_mask=attention_mask,
                logits_positions=canvases(f"masked_{index}", False),
                target_ids=targets[masked],
                with_entropy=with_entropy,
                vocab_slice=self._image_slice,
                guidance_scale=guidance_scale,
            )
            scores = {"log_probs": output.log_probs, "entropy": output.entropy if with_entropy else None}
            for name, values in scores.items():
                if values is not None:
                    placed = values.new_zeros(masked.shape).masked_scatter(masked, values)
                    sums[name] = sums[name] + placed if name in sums else placed
        shifted = {name: torch.nn.functional.pad(values[:, 1:], (0, 1)) for name, values in sums.items()}
        return {name: jag(values, offsets) for name, values in shifted.items()}

    def _merged_lora_per_tensor_param(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Stream base weights with the adapter merged in, in the module's own dtype (verl's would cast to bf16)."""
        with merged_lora_context(self.module, backup_adapters=True):
            params = normalize_peft_param_name(self.module.state_dict())
            for name, param in params.items():
                if isinstance(param, DTensor):
                    on_device: Any = param.to(get_device_id(), non_blocking=True)
                    yield name, on_device.full_tensor()
                else:
                    yield name, param.detach().clone()
        if self._is_offload_param:
            self.to("cpu", model=True, optimizer=False, grad=False)
