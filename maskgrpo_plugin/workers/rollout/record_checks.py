"""Check of the sampler's record on the driver before Ray starts: a method that reads one gets it, and can use it."""

from omegaconf import DictConfig

from maskgrpo_plugin.diffusion.estimators import ESTIMATORS
from maskgrpo_plugin.diffusion.samplers import SAMPLERS, keeps_record
from maskgrpo_plugin.diffusion.samplers.record import FIELDS
from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.workers.rollout.checks import sampler_settings

ESTIMATION = "algorithm.estimation"
ROLLOUT = "actor_rollout_ref.rollout"
RECORD = f"{ROLLOUT}.calculate_log_probs"
OF_ALL = ("reveal_step",)  # fields of a completion, one entry per token, that all samplers record


def check_record(config: DictConfig) -> None:
    """Check that estimator, sampler and `rollout.calculate_log_probs` agree about the sampler's record.

    Raises:
        OptionError: a record that nobody keeps or reads, or one that the policy's log-probabilities cannot be held to.
    """
    estimation, rollout = config.algorithm.estimation, config.actor_rollout_ref.rollout
    name: str = estimation.estimator
    estimator, sampler = ESTIMATORS[name], sampler_settings(rollout.sampler)
    unknown = [field for field in estimator.requires if field not in (*OF_ALL, *FIELDS)]
    if unknown:
        known = ", ".join((*OF_ALL, *FIELDS))
        allowed = f"it reads {', '.join(unknown)} of the rollout, and samplers record {known} alone"
        raise OptionError(f"{ESTIMATION}.estimator", name, allowed)
    reads = [field for field in estimator.requires if field in FIELDS]
    if not reads:
        if rollout.calculate_log_probs:
            raise OptionError(RECORD, True, f"use false: the estimator {name} does not read the sampler's record")
        return
    if not keeps_record(sampler.name):
        fitting = " or ".join(other for other in SAMPLERS if keeps_record(other))
        allowed = f"the estimator {name} reads the sampler's record, and this one keeps none: use {fitting}"
        raise OptionError(f"{ROLLOUT}.sampler.name", sampler.name, allowed)
    if not rollout.calculate_log_probs:
        raise OptionError(RECORD, False, f"use true: the estimator {name} reads {', '.join(reads)} of the rollout")
    if not rollout.temperature > 0:
        allowed = f"use more than 0: a greedy sampler draws nothing that the estimator {name} could compare with"
        raise OptionError(f"{ROLLOUT}.temperature", rollout.temperature, allowed)
    guidance = sampler.chosen().get("cfg_scale", 0.0)
    if estimator.from_record and estimation.cfg_scale != guidance:
        allowed = f"use {guidance}, the guidance of {ROLLOUT}.sampler, in which the record is"
        raise OptionError(f"{ESTIMATION}.cfg_scale", estimation.cfg_scale, allowed)
