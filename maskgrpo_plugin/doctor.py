"""`python -m maskgrpo_plugin.doctor`: what is registered, which versions and devices there are, which extras work."""

import argparse
import importlib
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version

VERL_VERSION = "0.9.1"
REQUIRED = ("verl", "torch", "transformers", "ray", "hydra-core", "tensordict", "TransferQueue", "peft", "pyzmq")
EXTRAS = {
    "vllm": ("vllm", "autoregressive baselines on GPU"),
    "deepspeed": ("deepspeed", "DeepSpeed optimisers"),
    "e2b": ("e2b_code_interpreter", "code rewards in E2B sandboxes"),
    "open_clip_torch": ("open_clip", "CLIP rewards"),
    "hpsv2": ("open_clip", "HPSv2 rewards: the published checkpoint in open_clip"),
    "ocr": ("rapidocr_onnxruntime", "OCR rewards"),
    "lm_eval": ("lm_eval", "lm-evaluation-harness"),
    "flash-attn": ("flash_attn", "flash attention"),
    "liger-kernel": ("liger_kernel", "fused kernels"),
}


@dataclass
class Finding:
    """One line of the report; `ok` None is information that cannot fail."""

    subject: str
    detail: str
    ok: bool | None = None

    def line(self) -> str:
        """The finding as a line of the report."""
        sign = {True: "ok  ", False: "FAIL", None: "    "}[self.ok]
        return f"{sign} {self.subject:<28} {self.detail}"


def _versions() -> list[Finding]:
    findings = [Finding("python", sys.version.split()[0], (3, 10) <= sys.version_info[:2] <= (3, 12))]
    for name in REQUIRED:
        try:
            found = version(name)
        except PackageNotFoundError:
            findings.append(Finding(name, "not installed", False))
            continue
        right = found == VERL_VERSION if name == "verl" else True
        findings.append(Finding(name, found if right else f"{found}; the plugin is for {VERL_VERSION}", right))
    return findings


def _registered() -> list[Finding]:
    names = [entry.name for entry in entry_points(group="verl.plugins")]
    findings = [Finding("entry point verl.plugins", ", ".join(names) or "none", "maskgrpo" in names)]
    try:
        import verl  # noqa: F401

        registration = importlib.import_module("maskgrpo_plugin.registration")
        registration.register()
        engines = importlib.import_module("maskgrpo_plugin.workers.engine")
    except Exception as error:
        return [*findings, Finding("registration", f"{type(error).__name__}: {error}", False)]

    from verl.experimental.reward_loop.reward_manager.registry import REWARD_MANAGER
    from verl.plugin.platform import PlatformRegistry
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, POLICY_LOSS_REGISTRY
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
    from verl.workers.engine.base import EngineRegistry
    from verl.workers.rollout.base import _ROLLOUT_REGISTRY

    expected = {
        "platform cpu": PlatformRegistry.get("cpu") is not None,
        "trainer maskgrpo_sync": "maskgrpo_sync" in TRAINER_REGISTRY,
        "trainer maskgrpo_colocate_async": "maskgrpo_colocate_async" in TRAINER_REGISTRY,
        "advantage maskgrpo": "maskgrpo" in ADV_ESTIMATOR_REGISTRY,
        "loss maskgrpo": "maskgrpo" in POLICY_LOSS_REGISTRY,
        "loss maskgrpo_gmpo": "maskgrpo_gmpo" in POLICY_LOSS_REGISTRY,
        "engine masked_diffusion": "masked_diffusion" in EngineRegistry._engines,
        "rollout masked_diffusion": ("masked_diffusion", "async") in _ROLLOUT_REGISTRY,
        "rollout transformers": ("transformers", "async") in _ROLLOUT_REGISTRY,
        "reward manager maskgrpo_text": "maskgrpo_text" in REWARD_MANAGER,
        "reward manager maskgrpo_image": "maskgrpo_image" in REWARD_MANAGER,
    }
    findings.append(Finding("engines", engines.MaskedDiffusionEngine.__name__))
    return findings + [Finding(name, "registered" if found else "missing", found) for name, found in expected.items()]


def _models() -> list[Finding]:
    from transformers import AutoConfig

    from maskgrpo_plugin.models.registry import MODELS

    findings = []
    for name in MODELS:
        try:
            findings.append(Finding(f"model {name}", type(AutoConfig.for_model(name)).__name__, True))
        except Exception as error:
            findings.append(Finding(f"model {name}", f"{type(error).__name__}: {error}", False))
    return findings


def _devices() -> list[Finding]:
    import torch

    found = f"CPU only, {os.cpu_count()} cores"
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}
        found = f"{torch.cuda.device_count()} × {', '.join(sorted(names))}"
    return [Finding("devices", found), *_platform()]


def _platform() -> list[Finding]:
    """verl's platform; nothing where the registration, which is looked at later, fails."""
    try:
        from verl.utils.device import get_device_name

        name = get_device_name()
    except Exception:
        return []
    reasons = [f"{key}={os.environ[key]}" for key in ("VERL_PLATFORM", "RAY_ADDRESS") if os.environ.get(key)]
    return [Finding("platform", ", ".join([name, *reasons]))]


def _extras() -> list[Finding]:
    findings = []
    for extra, (module, purpose) in EXTRAS.items():
        try:
            importlib.import_module(module)
            detail = "usable"
        except ModuleNotFoundError:
            detail = "not installed"
        except Exception as error:
            detail = f"installed, but its import fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
        findings.append(Finding(f"extra {extra}", f"{detail} ({purpose})"))
    for program in ("bwrap", "nsjail"):
        found = shutil.which(program)
        findings.append(Finding(f"program {program}", found or "not found (isolation of code rewards)"))
    return findings


def main(argv: list[str] | None = None) -> int:
    """Print the report.

    Returns:
        0 where the plugin can work, 1 otherwise.
    """
    argparse.ArgumentParser(prog="python -m maskgrpo_plugin.doctor", description=__doc__).parse_args(argv)
    findings = _versions() + _devices() + _registered() + _models() + _extras()
    sys.stdout.write("\n".join(finding.line() for finding in findings) + "\n")
    failed = [finding.subject for finding in findings if finding.ok is False]
    sys.stdout.write(f"\n{'not usable: ' + ', '.join(failed) if failed else 'the plugin is usable'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
