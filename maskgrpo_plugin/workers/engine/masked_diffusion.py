"""The masked-diffusion FSDP engine: an estimator's passes, update by update, behind verl's interface."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor, nn
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
from verl.workers.utils.padding import response_from_nested

from maskgrpo_plugin.diffusion.estimators import Estimator, Pass, Rows
from maskgrpo_plugin.diffusion.estimators.plan import StepPlan
from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.families import ImageFamily, build_family
from maskgrpo_plugin.workers.engine.on_cpu import CPUCapableFSDPEngine
from maskgrpo_plugin.workers.engine.passes import Line, make_line, make_units, pad_units, rows_of


@EngineRegistry.register(model_type="masked_diffusion", backend=["fsdp", "fsdp2"], device=["cuda", "npu", "cpu"])
class MaskedDiffusionEngine(CPUCapableFSDPEngine, FSDPEngineWithLMHead):
    """Actor and reference of a masked diffusion model.

    The batch carries the step's plan (non-tensor `estimation`) and each row's `mask_key`. `infer_batch` returns the
    estimates ℓ̂ of every update in one call, `log_probs` jagged (B, j, μ), or (B, j, 1) where the passes are the same in
    every update; `train_batch` takes the update's index from the non-tensor `update`. Values lie where verl's
    autoregressive engine puts them (the value of the token at position n is at n − 1), so that verl's losses and
    trainer code read them unchanged.
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
        """Run one update with gradients, or every update of the plan without.

        Args:
            data: jagged batch with `input_ids`, `prompts`, `responses`, `response_mask`, `mask_key`, and the
                non-tensors `estimation` and, for training, `update`.
            loss_function: verl's loss; None for log-probabilities alone.
            forward_only: no gradients, all updates.

        Returns:
            verl's output dict (`model_output`, `loss`, `metrics`).
        """
        data = data.to("cpu")
        plan = StepPlan.from_plain(tu.get_non_tensor_data(data, "estimation", default=None))
        estimator = plan.build()
        rows = rows_of(data, plan, estimator, self.model_config.hf_config.mask_token_id)
        if not forward_only:
            update = tu.get_non_tensor_data(data, "update", default=0)
            units, _ = self._units(data, rows, plan, estimator, update)
            return super().forward_backward_batch(units, loss_function, False)
        outputs = [
            self._infer(data, rows, plan, estimator, update, loss_function)
            for update in range(estimator.updates if estimator.varies else 1)
        ]
        merged = outputs[0]
        merged["model_output"] = {
            key: torch.nested.nested_tensor_from_jagged(
                torch.stack([output["model_output"][key] for output in outputs], dim=-1), data["input_ids"].offsets()
            )
            for key in outputs[0]["model_output"]
        }
        return merged

    def _units(
        self, data: TensorDict, rows: Rows, plan: StepPlan, estimator: Estimator, update: int
    ) -> tuple[TensorDict, list[int]]:
        """The units of an update, as many on every rank and a multiple of the micro-batch size, and their rows."""
        passes = estimator.passes(rows, seed=plan.seed, step=plan.step, update=update)
        units, members = make_units(data, rows, passes, estimator, update)
        width = units["line_lengths"].shape[1]
        size = 1
        if tu.get_non_tensor_data(data, "use_dynamic_bsz", default=True):
            budget = max(data["max_token_len_per_gpu"] // width, int(data["input_ids"].offsets().diff().max()))
            tu.assign_non_tensor(units, max_token_len_per_gpu=budget)
        else:
            size = max(data["micro_batch_size_per_gpu"] // width, 1)
            tu.assign_non_tensor(units, micro_batch_size_per_gpu=size)
        scoring = int((units["line_scored_count"] > 0).sum())
        count, sequences = self._over_ranks(len(units), scoring)
        units = pad_units(units, -(-count // size) * size)
        if estimator.separable and len(passes) > 1:
            tu.assign_non_tensor(units, global_batch_size=sequences)
        tu.assign_non_tensor(
            units, guidance_scale=plan.cfg_scale, loss_weight=estimator.loss_weight(update), estimation=plan.to_plain()
        )
        return units, members

    def _over_ranks(self, most: int, total: int) -> tuple[int, int]:
        """The largest `most` and the sum of `total` over the data-parallel ranks."""
        group = self.get_data_parallel_group()
        numbers = torch.tensor([most, total], device=get_device_id())
        torch.distributed.all_reduce(numbers[:1], op=torch.distributed.ReduceOp.MAX, group=group)
        torch.distributed.all_reduce(numbers[1:], op=torch.distributed.ReduceOp.SUM, group=group)
        largest, added = numbers.tolist()
        return largest, added

    def _infer(
        self,
        data: TensorDict,
        rows: Rows,
        plan: StepPlan,
        estimator: Estimator,
        update: int,
        loss_function: Callable | None,
    ) -> dict[str, Any]:
        """One update without gradients; the units' values are added up to those of their rows, (Σ j,) by name."""
        units, members = self._units(data, rows, plan, estimator, update)
        output = super().forward_backward_batch(units, loss_function, True)
        row_index = torch.tensor(members)
        inside = rows.attended[row_index]
        model_output = {}
        for name, values in output["model_output"].items():
            by_unit = torch.zeros(inside.shape, dtype=values.dtype)
            by_unit[inside] = values.values()[: int(inside.sum())].cpu()
            by_row = torch.zeros(rows.tokens.shape, dtype=values.dtype).index_add_(0, row_index, by_unit)
            model_output[name] = by_row[rows.attended]
        output["model_output"] = model_output
        return output

    def forward_step(
        self, micro_batch: TensorDict, loss_function: Callable | None, forward_only: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """One micro-batch of units: forward their passes, fold the log-probabilities, apply the loss.

        Returns:
            The loss scaled by the update's weight, and verl's per-micro-batch output dict.
        """
        plan = StepPlan.from_plain(tu.get_non_tensor_data(micro_batch, "estimation", default=None))
        line = make_line(micro_batch, guided=plan.cfg_scale > 0)
        uses_float32 = self._autocast_dtype == torch.float32
        autocast = nullcontext() if uses_float32 else torch.autocast(get_device_name(), dtype=self._autocast_dtype)
        with autocast:
            model_output = self._estimate(line, micro_batch, plan)
            if forward_only:
                nothing = torch.zeros((), device=get_device_id())
                return nothing, {"model_output": model_output, "loss": 0.0, "metrics": {}}
            assert loss_function is not None
            share = line.scored.sum() / (micro_batch["maskable"].sum() * line.shape[1]).clamp(min=1)
            micro_batch = micro_batch.to(get_device_id())
            if "old_log_probs" not in micro_batch.keys():
                own = model_output["log_probs"].detach()
                micro_batch["old_log_probs"] = response_from_nested(own, micro_batch["response_mask"])
            loss, metrics = loss_function(
                model_output=model_output, data=micro_batch, dp_group=self.get_data_parallel_group()
            )
            loss = loss * tu.get_non_tensor_data(micro_batch, "loss_weight", default=1.0)
            metrics["masked_share"] = Metric(value=share.item(), aggregation=AggregationType.MEAN)
        return loss, {"model_output": detach_tree(model_output), "loss": loss.detach().item(), "metrics": metrics}

    def _estimate(self, line: Line, micro_batch: TensorDict, plan: StepPlan) -> dict[str, Tensor]:
        """Estimates ℓ̂ (and entropies, where asked for) as jagged (U, j), each one position before its token."""
        device = get_device_id()
        with_entropy = tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False)
        output = self.module(
            input_ids=line.ids.to(device).unsqueeze(0),
            packing=Packing.from_lengths(line.lengths, device),
            logits_positions=line.places.to(device),
            target_ids=line.targets.to(device),
            with_entropy=with_entropy,
            vocab_slice=self._image_slice,
            guidance_scale=plan.cfg_scale,
        )
        scored, weight = line.scored.to(device), line.weight.to(device)
        index, packed, offsets = line.index.to(device), line.packed.to(device), line.offsets.to(device)

        def in_place(values: Tensor) -> Tensor:
            """(N,) -> (U, passes, L), 0 where nothing is scored."""
            return values.new_zeros(scored.numel()).index_copy(0, index, values).view(line.shape)

        passes = [Pass(scored[:, n], scored[:, n], weight[:, n]) for n in range(line.shape[1])]
        folded = {"log_probs": plan.build().fold(passes, list(in_place(output.log_probs).unbind(1)))}
        if with_entropy:
            folded["entropy"] = in_place(output.entropy).sum(1) / scored.sum(1).clamp(min=1)
        return {
            name: torch.nested.nested_tensor_from_jagged(values.flatten()[packed].roll(-1), offsets)
            for name, values in folded.items()
        }

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
