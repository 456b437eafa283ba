"""The plugin's own config sections as dataclasses, each value checked where it is built and named by its full key."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from omegaconf import DictConfig, OmegaConf
from verl.base_config import BaseConfig
from verl.trainer.config import AlgoConfig
from verl.workers.config import FSDPActorConfig, HFModelConfig, PolicyLossConfig, RolloutConfig

from maskgrpo_plugin.diffusion.estimators import Estimator, build_estimator
from maskgrpo_plugin.diffusion.estimators.plan import StepPlan
from maskgrpo_plugin.diffusion.random import LARGEST_SEED
from maskgrpo_plugin.diffusion.samplers import Sampler, build_for_run, option_names
from maskgrpo_plugin.errors import OptionError, check_choice, check_number
from maskgrpo_plugin.models.families import ImageFamily
from maskgrpo_plugin.models.families.base import ImageTokenizerConfig
from maskgrpo_plugin.models.overrides import override

logger = logging.getLogger(__name__)

ESTIMATION = "algorithm.estimation"
MASK_SHARING = ("index", "group", "sample")
# keys that became options of an estimator; they work under their old names for one release
MOVED_TO_OPTIONS = ("gamma", "remasking", "time_weighting", "prompt_mask_ratio", "level_cap")


@dataclass
class EstimationConfig(BaseConfig):
    """How importance ratios are estimated.

    Attributes:
        estimator: name of a registered estimator: `maskgrpo`, `unigrpo`, `diffu_grpo`, `coupled`, `trajectory`, `elbo`,
            `spg`, `positions`, `sampled_steps`, or one of your own.
        mu: inner updates over the same rollouts, 1 or more; None: the estimator's default.
        canvas: what the model sees after the first end token: `masked`, `full`, `visible` or `trimmed`; see
            `Estimator`.
        options: the estimator's other options by name, see its class; null: its default.
        mask_sharing: who shares a mask at an update: completions of the same `index` in their groups (published), a
            whole `group`, or nobody (`sample`).
        seed: seed of the masks.
        reference_sync_steps: copy the actor into the reference every so many steps; 0 never does.
        cfg_scale: guidance weight w ≥ 0 of the log-probabilities, for actor, old and reference policy alike: those of
            (1 + w)·logits − w·logits without the prompt's text. 0 (published): the model's own, whatever guidance
            the sampler has.
        gamma, remasking, time_weighting, prompt_mask_ratio, level_cap, train_on_tail: old names, for one release:
            options of the estimator, and for the last `canvas=full`. None where they are not used.

    Raises:
        OptionError: a value that cannot work.
    """

    estimator: str = "maskgrpo"
    mu: int | None = None
    canvas: str = "masked"
    options: dict[str, Any] = field(default_factory=dict)
    mask_sharing: str = "index"
    seed: int = 42
    reference_sync_steps: int = 0
    cfg_scale: float = 0.0
    gamma: float | None = None
    remasking: str | None = None
    time_weighting: str | None = None
    prompt_mask_ratio: float | None = None
    level_cap: float | None = None
    train_on_tail: bool | None = None

    def __post_init__(self):
        check_choice(f"{ESTIMATION}.mask_sharing", self.mask_sharing, MASK_SHARING)
        check_number(f"{ESTIMATION}.seed", self.seed, 0, LARGEST_SEED, whole=True)
        check_number(f"{ESTIMATION}.reference_sync_steps", self.reference_sync_steps, 0, whole=True)
        check_number(f"{ESTIMATION}.cfg_scale", self.cfg_scale, 0)
        try:
            self.build()
        except OptionError as error:
            own = getattr(self, error.key, None) is not None  # `estimator`, `mu`, `canvas`, or an old name
            raise error.under(ESTIMATION if own else f"{ESTIMATION}.options") from None
        except (TypeError, AttributeError) as error:
            key = f"{ESTIMATION}.options"
            raise OptionError(key, self.estimator_options(), f"a value of another type: {error}") from None

    def estimator_options(self) -> dict[str, Any]:
        """Keyword arguments of the estimator, the old names under their new ones."""
        options = {key: value for key, value in self.options.items() if value is not None} | {"canvas": self.canvas}
        if self.mu is not None:
            options["mu"] = self.mu
        options |= {key: getattr(self, key) for key in MOVED_TO_OPTIONS if getattr(self, key) is not None}
        if self.train_on_tail:
            options["canvas"] = "full"
        return options

    def renamed(self) -> dict[str, str]:
        """Old names in use, and what to write in their place."""
        used = {key: f"options.{key}" for key in MOVED_TO_OPTIONS if getattr(self, key) is not None}
        return used | ({"train_on_tail": "canvas=full"} if self.train_on_tail is not None else {})

    def build(self) -> Estimator:
        """The estimator with its options."""
        return build_estimator(self.estimator, **self.estimator_options())

    def plan(
        self,
        step: int,
        *,
        stop_token_ids: tuple[int, ...],
        block_length: int | None = None,
        temperature: float = 1.0,
        banned_token_ids: tuple[int, ...] = (),
    ) -> StepPlan:
        """What every worker needs to find the passes of a training step.

        Args:
            step: the trainer's global step.
            stop_token_ids: ids that end a response.
            block_length: of a block-causal model.
            temperature, banned_token_ids: of the sampler, and what it never emits.
        """
        return StepPlan(
            estimator=self.estimator,
            options=self.estimator_options(),
            seed=self.seed,
            step=step,
            stop_token_ids=tuple(stop_token_ids),
            cfg_scale=float(self.cfg_scale),
            block_length=block_length,
            temperature=float(temperature),
            banned_token_ids=tuple(banned_token_ids),
        )


def check_estimation(config: DictConfig) -> None:
    """Check `algorithm.estimation` of a whole config, and what it needs of other sections.

    Raises:
        OptionError: a key that does not exist, a value that cannot work, or settings that do not fit together.
    """
    section = config.algorithm.get("estimation")
    if section is None:
        raise OptionError(ESTIMATION, None, "a masked diffusion model needs this section")
    values: Any = OmegaConf.to_container(section, resolve=True)
    values.pop("_target_", None)
    known = [name for name in EstimationConfig.__dataclass_fields__ if not name.startswith("_")]
    for key, value in values.items():
        if key not in known:
            raise OptionError(f"{ESTIMATION}.{key}", value, f"no such key; there are {', '.join(sorted(known))}")
    estimation = EstimationConfig(**values)
    for old, new in estimation.renamed().items():
        logger.warning(
            "%s.%s: the key is now %s.%s; the old one goes with the next release", ESTIMATION, old, ESTIMATION, new
        )
    estimator = estimation.build()
    actor, model = config.actor_rollout_ref.actor, config.actor_rollout_ref.model
    if estimation.reference_sync_steps and not actor.use_kl_loss:
        raise OptionError(
            f"{ESTIMATION}.reference_sync_steps",
            estimation.reference_sync_steps,
            "there is no reference without a KL term (actor_rollout_ref.actor.use_kl_loss=false); use 0",
        )
    if estimation.reference_sync_steps and model.get("lora_rank", 0) > 0:
        raise OptionError(
            f"{ESTIMATION}.reference_sync_steps",
            estimation.reference_sync_steps,
            "with LoRA the reference is the model without its adapter and cannot move; use 0",
        )
    if actor.use_kl_loss and not estimator.uses_reference:
        raise OptionError(
            "actor_rollout_ref.actor.use_kl_loss", True, f"use false: {estimation.estimator} has no reference policy"
        )


@dataclass
class MaskGRPOAlgoConfig(AlgoConfig):
    """verl's `algorithm` section with the estimation settings and the reward transform.

    Attributes:
        estimation: see `EstimationConfig`.
        reward_transform: `none`, or `rank` (Pref-GRPO's win rates within the group).
        on_reward_failure: what becomes of a sample whose text reward failed: `zero` keeps it with reward 0, the others
            are `rewards.failures`'; images have their own key, `reward.image.on_failure`.
        max_lost_share: a step of which more than this share of the completions is lost or has no reward ends the run;
            from 0 to 1.

    Raises:
        OptionError: a value that cannot work.
    """

    estimation: EstimationConfig = field(default_factory=EstimationConfig)
    reward_transform: str = "none"
    on_reward_failure: str = "zero"
    max_lost_share: float = 0.1

    def __post_init__(self) -> None:
        check_number("algorithm.max_lost_share", self.max_lost_share, 0, 1)


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

    def banned_token_ids(self, mask_token_id: int) -> tuple[int, ...]:
        """What the sampler never emits."""
        return (mask_token_id, *self.chosen().get("forbidden_token_ids", ()))

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
                raise OptionError(f"actor_rollout_ref.rollout.image.{key}", value, "allowed: pixels, 1 or more")
        if (self.height is None) != (self.width is None):
            raise OptionError("actor_rollout_ref.rollout.image.width", self.width, "set height and width, or neither")

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
        log_prob_gap_rows: completions of a step on which actor and server are compared after the weight sync, every
            `trainer.test_freq` steps; 0: none.
        log_prob_gap_warning: a mean absolute difference of their log-probabilities above it is a warning.
    """

    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    image: ImageSettings = field(default_factory=ImageSettings)
    max_wait_ms: float = 1000.0
    quiet_ms: float = 20.0
    compile: bool = False
    log_prob_gap_rows: int = 4
    log_prob_gap_warning: float = 0.05

    def __post_init__(self):
        super().__post_init__()
        check_number("actor_rollout_ref.rollout.log_prob_gap_rows", self.log_prob_gap_rows, 0, whole=True)
        for key in ("max_wait_ms", "quiet_ms", "log_prob_gap_warning"):
            check_number(f"actor_rollout_ref.rollout.{key}", getattr(self, key), 0)


@dataclass
class CheckpointConfig(HFModelConfig):
    """verl's model section, whose `override_config` may hold mappings such as DiMOO's `system_prompts`.

    verl takes a mapping for the keys of a config within the checkpoint's and fails where there is none.

    Attributes:
        override_config: keys that replace those of the checkpoint's config; see `models.overrides.override`.
    """

    override_config: dict[str, Any] = field(default_factory=dict)

    _mutable_fields = HFModelConfig._mutable_fields | {"override_config"}

    def __post_init__(self):
        given = self.override_config
        mappings = {key: value for key, value in given.items() if isinstance(value, Mapping) and key != "model_config"}
        self.override_config = {key: value for key, value in given.items() if key not in mappings}
        super().__post_init__()
        self.override_config = given
        override(self.hf_config, mappings)


@dataclass
class PolicyLossSettings(PolicyLossConfig):
    """verl's policy loss section with the options of the plugin's losses of scores.

    Attributes:
        options: of the loss `loss_mode` by name, see its class in `maskgrpo_plugin.trainer.losses`.
    """

    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class CheckedActorConfig(FSDPActorConfig):
    """verl's FSDP actor section; building it on the driver checks the whole config first.

    Attributes:
        preflight: filled by the resolver `maskgrpo.preflight`, which raises where the run cannot work.
    """

    preflight: bool = False
