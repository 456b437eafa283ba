"""The plugin's own config sections as dataclasses, each value checked where it is built and named by its full key."""

from dataclasses import dataclass, field
from typing import Any

from verl.base_config import BaseConfig
from verl.trainer.config import AlgoConfig
from verl.workers.config import FSDPActorConfig, RolloutConfig

from maskgrpo_plugin.diffusion.estimation import uniform_levels
from maskgrpo_plugin.diffusion.levels import mask_levels
from maskgrpo_plugin.errors import ConfigError, check_choice

ESTIMATION = "algorithm.estimation"
ESTIMATORS = ("maskgrpo", "unigrpo", "diffu_grpo", "coupled", "tracerl")
REMASKING_MODES = ("ar_like", "random")
MASK_SHARING = ("index", "group", "sample")
TIME_WEIGHTINGS = ("none", "inverse_t")
CANVASES = ("full", "trimmed")


@dataclass
class EstimationConfig(BaseConfig):
    """How importance ratios are estimated (arXiv 2510.02880, Algorithms 1 and 2).

    Attributes:
        estimator: `maskgrpo`, or a baseline: `unigrpo` (random masks at uniform levels), `diffu_grpo` (d1: prompt
            masked with `prompt_mask_ratio`, response masked whole), `coupled` (a mask and its complement),
            `tracerl` (masks in the order in which the sampler revealed tokens).
        mu: inner updates and mask levels over the same rollouts, at least 1.
        gamma: lowest mask level, in the open interval (0, 1); 0.6 for text, 0.8 for images.
        remasking: Rev of `maskgrpo`: `ar_like` (text) or `random` (images).
        mask_sharing: who shares a mask at a level: completions of the same `index` in their groups (published), a
            whole `group`, or nobody (`sample`).
        time_weighting: `none` (published code) or `inverse_t` (Eq. 2: a level's loss is weighted by 1/t).
        prompt_mask_ratio: share of prompt tokens that `diffu_grpo` masks, in [0, 1).
        canvas: `full` keeps what follows the first end token visible, `trimmed` hides it from the model.
        train_on_tail: also mask, and learn, the tokens after the first end token.
        level_cap: highest mask level, in (0, 1].
        seed: seed of the masks.
        reference_sync_steps: copy the actor into the reference every so many steps; 0 never does.
        cfg_scale: guidance weight w ≥ 0 of the log-probabilities, for actor, old and reference policy alike: those of
            (1 + w)·logits − w·logits without the prompt's text. 0 (published): the model's own, whatever guidance
            the sampler has.

    Raises:
        ConfigError: a value out of range.
    """

    estimator: str = "maskgrpo"
    mu: int = 12
    gamma: float = 0.6
    remasking: str = "ar_like"
    mask_sharing: str = "index"
    time_weighting: str = "none"
    prompt_mask_ratio: float = 0.15
    canvas: str = "full"
    train_on_tail: bool = False
    level_cap: float = 0.999
    seed: int = 42
    reference_sync_steps: int = 0
    cfg_scale: float = 0.0

    def __post_init__(self):
        check_choice(f"{ESTIMATION}.estimator", self.estimator, ESTIMATORS)
        check_choice(f"{ESTIMATION}.remasking", self.remasking, REMASKING_MODES)
        check_choice(f"{ESTIMATION}.mask_sharing", self.mask_sharing, MASK_SHARING)
        check_choice(f"{ESTIMATION}.time_weighting", self.time_weighting, TIME_WEIGHTINGS)
        check_choice(f"{ESTIMATION}.canvas", self.canvas, CANVASES)
        if not isinstance(self.mu, int) or self.mu < 1:
            raise ConfigError(f"{ESTIMATION}.mu", self.mu, "allowed: whole numbers from 1")
        if not 0 < self.gamma < 1:
            raise ConfigError(f"{ESTIMATION}.gamma", self.gamma, "allowed: the open interval (0, 1)")
        if not 0 < self.level_cap <= 1:
            raise ConfigError(f"{ESTIMATION}.level_cap", self.level_cap, "allowed: (0, 1]")
        if not 0 <= self.prompt_mask_ratio < 1:
            raise ConfigError(f"{ESTIMATION}.prompt_mask_ratio", self.prompt_mask_ratio, "allowed: [0, 1)")
        if self.reference_sync_steps < 0:
            raise ConfigError(f"{ESTIMATION}.reference_sync_steps", self.reference_sync_steps, "allowed: 0 or more")
        if not 0 <= self.cfg_scale < float("inf"):
            raise ConfigError(f"{ESTIMATION}.cfg_scale", self.cfg_scale, "allowed: 0 or more")

    def levels(self, step: int) -> list[float]:
        """Mask levels t_1 … t_μ of one training step; only `unigrpo` and `coupled` draw them anew each step."""
        if self.estimator == "diffu_grpo":
            return [1.0] * self.mu
        if self.estimator in ("unigrpo", "coupled"):
            return uniform_levels(self.mu, seed=self.seed, step=step)
        return mask_levels(self.mu, self.gamma, self.level_cap)

    def plan(self, step: int, *, stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
        """Everything a worker needs to rebuild the masks of a training step, as plain numbers and strings.

        Args:
            step: the trainer's global step.
            stop_token_ids: ids that end a response.

        Returns:
            A dict for `EstimationPlan(**plan)`.
        """
        ratios = self.levels(step)
        modes = {"maskgrpo": self.remasking, "diffu_grpo": "full", "tracerl": "trajectory"}
        return {
            "mode": modes.get(self.estimator, "random"),
            "complement": self.estimator == "coupled",
            "ratios": ratios,
            "weights": [1 / t for t in ratios] if self.time_weighting == "inverse_t" else [1.0] * len(ratios),
            "prompt_mask_ratio": self.prompt_mask_ratio if self.estimator == "diffu_grpo" else 0.0,
            "canvas": self.canvas,
            "train_on_tail": self.train_on_tail,
            "cfg_scale": self.cfg_scale,
            "seed": self.seed,
            "step": step,
            "stop_token_ids": list(stop_token_ids),
        }


@dataclass
class MaskGRPOAlgoConfig(AlgoConfig):
    """verl's `algorithm` section with the estimation settings and the reward transform.

    Attributes:
        estimation: see `EstimationConfig`.
        reward_transform: `none`, or `rank` (Pref-GRPO's win rates within the group).
        on_reward_failure: what becomes of a sample whose text reward failed: `zero` keeps it with reward 0, the others
            are `rewards.failures`'; images have their own key, `reward.image.on_failure`.
    """

    estimation: EstimationConfig = field(default_factory=EstimationConfig)
    reward_transform: str = "none"
    on_reward_failure: str = "zero"


@dataclass
class SamplerSettings(BaseConfig):
    """Options of the rollout's sampler; temperature and response length are verl's own rollout keys.

    Attributes:
        name: `semi_autoregressive`, `emerge` or `maskgit`.
        steps: denoising steps in total, over all blocks.
        block_length: tokens a block; must divide `data.max_response_length`.
        ordering: `low_confidence`, `random`, `entropy` or `margin`.
        cfg_scale: guidance weight w, 0 for none.
        schedule: noise schedule of the image samplers.
        early_stop: stop decoding a response after the block that holds its end token.
        cache: `none`, `prefix` or `dual`, approximate where not `none`; see `SemiAutoregressiveSampler`.
        parallel: `none`, `threshold`, `factor`, `hierarchical` or `credit`; see `reveal_more`. Approximate but `none`.
        threshold: of `parallel`, a probability in (0, 1].
        factor: of `parallel=factor`, above 0.
    """

    name: str = "semi_autoregressive"
    steps: int = 128
    block_length: int = 16
    ordering: str = "low_confidence"
    cfg_scale: float = 0.0
    schedule: str = "cosine"
    early_stop: bool = True
    cache: str = "none"
    parallel: str = "none"
    threshold: float = 0.9
    factor: float = 1.0

    def options(self, *, response_length: int, temperature: float, stop_token_ids: tuple[int, ...]) -> dict[str, Any]:
        """Keyword arguments for `build_sampler(self.name, …)` of one kind of request."""
        options: dict[str, Any] = {
            "steps": self.steps,
            "response_length": response_length,
            "temperature": temperature,
            "cfg_scale": self.cfg_scale,
        }
        if self.name == "semi_autoregressive":
            options |= {"block_length": self.block_length, "ordering": self.ordering}
            options |= {key: getattr(self, key) for key in ("cache", "parallel", "threshold", "factor")}
            if self.early_stop:
                options["stop_token_ids"] = stop_token_ids
        else:
            options["schedule"] = self.schedule
        return options


@dataclass
class ImageSettings(BaseConfig):
    """Images that the rollout makes; unused where the data asks for none.

    Attributes:
        tokenizer_path: folder of the MAGVIT-v2 or diffusers VQModel checkpoint that turns image tokens into pixels.
        height, width: of the images in pixels; None for both: the checkpoint's square of image tokens.
        contact_sheet_rows: completions of each validation that are drawn as a contact sheet, for each agent-loop
            worker; 0 for none.
    """

    tokenizer_path: str | None = None
    height: int | None = None
    width: int | None = None
    contact_sheet_rows: int = 32

    def __post_init__(self):
        for key in ("height", "width"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ConfigError(f"actor_rollout_ref.rollout.image.{key}", value, "allowed: pixels, 1 or more")
        if (self.height is None) != (self.width is None):
            raise ConfigError("actor_rollout_ref.rollout.image.width", self.width, "set height and width, or neither")

    def grid(self, family: Any, image_tokenizer: Any) -> tuple[int, int]:
        """Rows and columns of image tokens.

        Args:
            family: the checkpoint's `ImageFamily`.
            image_tokenizer: the image tokenizer's config.

        Raises:
            ValueError: sides that the tokenizer does not divide.
        """
        if self.height is None or self.width is None:
            return family.default_grid()
        return family.image_grid(image_tokenizer, self.height, self.width)


@dataclass
class DiffusionRolloutConfig(RolloutConfig):
    """verl's rollout section with the sampler and the batching of the plugin's servers.

    Attributes:
        sampler: see `SamplerSettings`.
        image: see `ImageSettings`.
        max_wait_ms: how long a server waits for more requests before it runs a batch that is not full, in ms; the
            largest batch is verl's `max_num_seqs`.
        quiet_ms: such a batch also runs once no request has come for so long, in ms.
        compile: run the model's layers through torch.compile, for any shape; needs `sampler.cache` none.
    """

    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    max_wait_ms: float = 1000.0
    quiet_ms: float = 20.0
    compile: bool = False

    def __post_init__(self):
        super().__post_init__()
        if self.compile and self.sampler.cache != "none":
            raise ConfigError("actor_rollout_ref.rollout.compile", True, "needs rollout.sampler.cache=none")
        for key in ("max_wait_ms", "quiet_ms"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"actor_rollout_ref.rollout.{key}", getattr(self, key), "allowed: 0 or more")


@dataclass
class CheckedActorConfig(FSDPActorConfig):
    """verl's FSDP actor section; building it on the driver checks the whole config first.

    Attributes:
        preflight: filled by the resolver `maskgrpo.preflight`, which raises where the run cannot work.
    """

    preflight: bool = False
