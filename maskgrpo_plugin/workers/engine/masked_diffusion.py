"""The masked-diffusion FSDP engine: an estimator's passes, update by update, behind verl's interface."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
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
from maskgrpo_plugin.diffusion.likelihood import SamplingDistribution
from maskgrpo_plugin.diffusion.packing import Packing
from maskgrpo_plugin.models.families import ImageFamily, build_family
from maskgrpo_plugin.workers.engine.on_cpu import CPUCapableFSDPEngine
from maskgrpo_plugin.workers.engine.passes import (
    Line,
    Units,
    make_line,
    make_units,
    rows_of,
    scoring_units,
    units_per_rank,
)


@EngineRegistry.register(model_type="masked_diffusion", backend=["fsdp", "fsdp2"], device=["cuda", "cpu"])
class MaskedDiffusionEngine(CPUCapableFSDPEngine, FSDPEngineWithLMHead):
    """Actor and reference of a masked diffusion model.

    The batch carries the step's plan (non-tensor `estimation`) and each row's `mask_key`. `infer_batch` returns the
    estimates ℓ̂ of every update in one call, `log_probs` jagged (B, j, μ), or (B, j, 1) where the passes are the same in
    every update; with n estimates per update that stand each for itself, (B, j, μ·n) or (B, j, n). `train_batch` takes
    the update's index from the non-tensor `update`. Values lie where verl's
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
        for parameter in module.parameters():  # buffers, such as rotary frequencies, stay in float32
            parameter.data = parameter.data.to(dtype)
        family = build_family(hf_config, self.model_config.tokenizer)
        self._mask_token_id = family.mask_token_id
        self._image_slice = family.image.vocab_slice if isinstance(family, ImageFamily) else None
        if self.model_config.enable_gradient_checkpointing:
            module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return module

    def _build_lora_module(self, module: nn.Module) -> nn.Module:
        """verl's, with the adapter and so its optimiser state in float32, whatever the base is in: in bfloat16 an
        update of 3e-6 is lost on nearly every entry. FSDP2 computes with a copy in its mixed precision's type.
        """
        module = super()._build_lora_module(module)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
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
        rows = rows_of(data, plan, estimator, self._mask_token_id)
        if not forward_only:
            update = tu.get_non_tensor_data(data, "update", default=0)
            batch, _ = self._units(data, rows, plan, estimator, update)
            return super().forward_backward_batch(batch, loss_function, False)
        outputs = [
            self._infer(data, rows, plan, estimator, update, loss_function)
            for update in range(estimator.updates if estimator.varies else 1)
        ]
        merged = outputs[0]
        merged["model_output"] = {
            key: torch.nested.nested_tensor_from_jagged(
                torch.cat([output["model_output"][key] for output in outputs], dim=-1), data["input_ids"].offsets()
            )
            for key in outputs[0]["model_output"]
        }
        return merged

    def _units(
        self, data: TensorDict, rows: Rows, plan: StepPlan, estimator: Estimator, update: int
    ) -> tuple[TensorDict, Units]:
        """The batch of an update's units for verl to divide, as many on every rank and a multiple of the micro-batch
        size; and the units.
        """
        passes = estimator.passes(rows, seed=plan.seed, step=plan.step, update=update)
        numbers = self._of_ranks(len(passes), rows.tokens.shape[1], len(rows.tokens), scoring_units(passes, estimator))
        most, longest, *_ = numbers.amax(0).tolist()
        parts = estimator.parts(most)
        split, width, size = parts > 1, most // parts, 1
        changed: dict[str, Any] = {}
        if tu.get_non_tensor_data(data, "use_dynamic_bsz", default=True):
            copies = 1 if plan.block_length is None else 2
            changed["max_token_len_per_gpu"] = max(data["max_token_len_per_gpu"] // (width * copies), longest)
        else:
            changed["micro_batch_size_per_gpu"] = size = max(data["micro_batch_size_per_gpu"] // width, 1)
        if split:
            changed["global_batch_size"] = int(numbers[:, 3].sum())
        count = units_per_rank(numbers[:, 3 if split else 2].tolist(), size)
        units = make_units(data, rows, passes, estimator, update, split=split, count=count)
        batch = units.to_batch()
        tu.assign_non_tensor(batch, units=units, plan=plan, loss_weight=estimator.loss_weight(update), **changed)
        return batch, units

    def _of_ranks(self, *numbers: int) -> Tensor:
        """Whole numbers of every data-parallel rank, (ranks, numbers), on the host."""
        world = self.get_data_parallel_size()
        own = torch.tensor(numbers, device=get_device_id())
        if world == 1:
            return own.unsqueeze(0)
        gathered = [torch.empty_like(own) for _ in range(world)]
        torch.distributed.all_gather(gathered, own, group=self.get_data_parallel_group())
        return torch.stack(gathered).cpu()

    def _infer(
        self,
        data: TensorDict,
        rows: Rows,
        plan: StepPlan,
        estimator: Estimator,
        update: int,
        loss_function: Callable | None,
    ) -> dict[str, Any]:
        """One update without gradients; the units' values are added up to those of their rows' estimates, by name
        (Σ j, estimates).
        """
        batch, units = self._units(data, rows, plan, estimator, update)
        output = super().forward_backward_batch(batch, loss_function, True)
        inside = rows.attended[units.row]
        place = units.row * estimator.estimates + units.estimate_of(torch.arange(len(units)))
        model_output = {}
        for name, values in output["model_output"].items():
            by_unit = torch.zeros(inside.shape, dtype=values.dtype)
            by_unit[inside] = values.values().cpu()
            added = torch.zeros(len(rows.tokens) * estimator.estimates, inside.shape[1], dtype=values.dtype)
            added.index_add_(0, place, by_unit)
            model_output[name] = added.unflatten(0, (-1, estimator.estimates)).transpose(1, 2)[rows.attended]
        output["model_output"] = model_output
        return output

    def forward_step(
        self, micro_batch: TensorDict, loss_function: Callable | None, forward_only: bool
    ) -> tuple[Tensor, dict[str, Any]]:
        """One micro-batch of units: forward their passes, fold the log-probabilities, apply the loss.

        Returns:
            The loss scaled by the update's weight, and verl's per-micro-batch output dict.
        """
        units, plan, chosen = (tu.get(micro_batch, key) for key in ("units", "plan", "unit"))
        line = make_line(units, chosen, guided=plan.cfg_scale > 0)
        with_entropy = tu.get_non_tensor_data(micro_batch, "calculate_entropy", default=False)
        with self.autocast():
            model_output = self._estimate(line, plan, with_entropy=with_entropy)
            if forward_only:
                nothing = torch.zeros((), device=get_device_id())
                return nothing, {"model_output": model_output, "loss": 0.0, "metrics": {}}
            assert loss_function is not None
            data = micro_batch.exclude("units", "plan").update(units.fields(chosen)).to(get_device_id())
            if "old_log_probs" not in data.keys():
                own = model_output["log_probs"].detach()
                data["old_log_probs"] = response_from_nested(own, data["response_mask"])
            loss, metrics = loss_function(model_output=model_output, data=data, dp_group=self.get_data_parallel_group())
            loss = loss * tu.get_non_tensor_data(micro_batch, "loss_weight", default=1.0)
            share = line.scored.sum() / (units.maskable[units.row[chosen]].sum() * units.width).clamp(min=1)
            metrics["masked_share"] = Metric(value=share.item(), aggregation=AggregationType.MEAN)
        return loss, {"model_output": detach_tree(model_output), "loss": loss.detach().item(), "metrics": metrics}

    def autocast(self) -> AbstractContextManager:
        """The context that the model computes in: automatic casts, unless it is in float32."""
        if self._autocast_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(get_device_name(), dtype=self._autocast_dtype)

    def _estimate(self, line: Line, plan: StepPlan, *, with_entropy: bool) -> dict[str, Tensor]:
        """Estimates ℓ̂ (and entropies, where asked for) as jagged (U, j), each one position before its token."""
        device, estimator, sampling = get_device_id(), plan.build(), None
        if estimator.from_record:
            allowed = None if line.allowed is None else line.allowed.to(device)
            sampling = SamplingDistribution(plan.temperature, plan.banned_token_ids, allowed)
        output = self.module(
            input_ids=line.ids.to(device).unsqueeze(0),
            clean_ids=None if line.clean_ids is None else line.clean_ids.to(device).unsqueeze(0),
            packing=Packing.from_lengths(line.lengths, device),
            logits_positions=line.places.to(device),
            target_ids=line.targets.to(device),
            with_entropy=with_entropy,
            vocab_slice=self._image_slice,
            guidance_scale=plan.cfg_scale,
            label_smoothing=estimator.target_smoothing,
            sampling=sampling,
        )
        scored, weight = line.scored.to(device), line.weight.to(device)
        index, packed, offsets = line.index.to(device), line.packed.to(device), line.offsets.to(device)

        def in_place(values: Tensor) -> Tensor:
            """(N,) -> (U, passes, L), 0 where nothing is scored."""
            return values.new_zeros(scored.numel()).index_copy(0, index, values).view(scored.shape)

        passes = [Pass(scored[:, n], scored[:, n], weight[:, n]) for n in range(scored.shape[1])]
        folded = {"log_probs": estimator.fold(passes, list(in_place(output.log_probs).unbind(1)))}
        if with_entropy:
            folded["entropy"] = in_place(output.entropy).sum(1) / scored.sum(1).clamp(min=1)
        return {
            name: torch.nested.nested_tensor_from_jagged(values.flatten(0, 1)[packed].roll(-1, 0), offsets)
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
