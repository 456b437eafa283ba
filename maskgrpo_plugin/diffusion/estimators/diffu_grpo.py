"""diffu-GRPO of d1 (arXiv 2504.12216): the whole response masked, and a part of the prompt."""

from dataclasses import dataclass

from maskgrpo_plugin.diffusion.estimators.base import Estimator, Pass, Rows, make_pass, register_estimator
from maskgrpo_plugin.diffusion.random import combine_seed
from maskgrpo_plugin.diffusion.remasking import mask_prompt
from maskgrpo_plugin.errors import check_number


@register_estimator("diffu_grpo")
@dataclass(frozen=True)
class DiffuGRPO(Estimator):
    """One pass per update: every response token masked, each prompt token with probability `prompt_mask_ratio`.

    As published, the tail is masked and not in the loss (`canvas="masked"`), and the prompt's mask is one draw per
    update, shared by θ, θ_old and θ_ref.

    Attributes:
        mu, canvas: see `Estimator`; published μ = 12.
        prompt_mask_ratio: share of prompt tokens that are masked, in [0, 1); never in the loss.
    """

    mu: int = 12
    prompt_mask_ratio: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("prompt_mask_ratio", self.prompt_mask_ratio, 0, 1)

    def passes(self, rows: Rows, *, seed: int, step: int, update: int) -> list[Pass]:
        """See `Estimator.passes`."""
        maskable = self.maskable(rows)
        noisy = self.clean(rows).masked_fill(maskable, rows.mask_token_id)
        noisy = mask_prompt(
            noisy,
            rows.prompt,
            self.prompt_mask_ratio,
            seed=combine_seed(seed, step, update),
            keys=rows.keys,
            mask_token_id=rows.mask_token_id,
        )
        return [make_pass(noisy, maskable)]
