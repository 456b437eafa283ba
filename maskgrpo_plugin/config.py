"""The plugin's own config sections as dataclasses, each value checked where it is built and named by its full key."""

from dataclasses import dataclass, field, fields
from typing import Any

from verl.base_config import BaseConfig
from verl.trainer.config import AlgoConfig
from verl.workers.config import FSDPActorConfig, RolloutConfig

from maskgrpo_plugin.diffusion.estimation import uniform_levels
from maskgrpo_plugin.diffusion.levels import mask_levels
from maskgrpo_plugin.diffusion.samplers import Sampler, build_for_run, option_names
from maskgrpo_plugin.errors import ConfigError, check_choice
from maskgrpo_plugin.models.families import ImageFamily
from maskgrpo_plugin.models.families.base import ImageTokenizerConfig

ESTIMATION = "algorithm.estimation"
ESTIMATORS = ("maskgrpo", "unigrpo", "diffu_grpo", "coupled", "tracerl")
REMASKING_MODES = ("ar_like", "random")
MASK_SHARING = ("index", "group", "sample")
TIME_WEIGHTINGS = ("none", "inverse_t")
CANVASES = ("full", "trimmed")


@dataclass
class EstimationConfig(BaseConfig):
    """How importance ratios are estimated (arXiv 2510.02880, Algorithms 1 and 2; DESIGN, "The algorithm").

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
    """The rollout's sampler; temperature and response length are verl's own rollout keys.

    Attributes:
        name: `semi_autoregressive`, `emerge`, `maskgit`, or one that `register_sampler` added.
        options: what the sampler's class declares, such as {steps: 128, block_length: 16}; null: its default.
        steps, block_length, ordering, cfg_scale, schedule, early_stop, cache, parallel, threshold, factor: old keys of
            these options, which win over `options` until they go with the next release.
    """

    name: str = "semi_autoregressive"
    options: dict[str, Any] = field(default_factory=dict)
    steps: int | None = None
    block_length: int | None = None
    ordering: str | None = None
    cfg_scale: float | None = None
    schedule: str | None = None
    early_stop: bool | None = None
    cache: str | None = None
    parallel: str | None = None
    threshold: float | None = None
    factor: float | None = None

    def old_options(self) -> dict[str, Any]:
        """The options that old keys set."""
        keys = [each.name for each in fields(self) if each.name not in ("name", "options", "_target_")]
        return {key: getattr(self, key) for key in keys if getattr(self, key) is not None}

    def chosen(self) -> dict[str, Any]:
        """The options that are set; old keys of options that another sampler has are passed over, as they always were.

        Raises:
            OptionError: an unknown name.
        """
        known = option_names(self.name)
        old = {key: value for key, value in self.old_options().items() if key in known}
        return {key: value for key, value in self.options.items() if value is not None} | old

    def build(self, **by_run: Any) -> Sampler:
        """The sampler; see `build_for_run`, also for the errors."""
        return build_for_run(self.name, self.chosen(), **by_run)


@dataclass
class ImageSettings(BaseConfig):
    """Images that the rollout makes; unused where the data asks for none.

    Attributes:
        tokenizer_path: folder of the MAGVIT-v2 or diffusers VQModel checkpoint that turns image tokens into pixels.
        height, width: of the images in pixels; None for both: the checkpoint's square of image tokens.
        contact_sheet_rows: completions per validation and agent-loop worker that are drawn as a contact sheet; 0 for
            none.
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

    def grid(self, family: ImageFamily, image_tokenizer: ImageTokenizerConfig) -> tuple[int, int]:
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
        max_wait_ms: longest wait of a server for more requests before it runs a batch that is not full, in ms; the
            largest batch is verl's `max_num_seqs`.
        quiet_ms: time without a new request after which it runs such a batch, in ms.
        compile: run the model's layers through torch.compile, for any shape; needs a sampler without a block cache.
    """

    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    max_wait_ms: float = 1000.0
    quiet_ms: float = 20.0
    compile: bool = False

    def __post_init__(self):
        super().__post_init__()
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
