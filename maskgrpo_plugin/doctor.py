"""`python -m maskgrpo_plugin.doctor`: what is registered, which versions and devices there are, which extras work."""

import argparse
import importlib
import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, version

from maskgrpo_plugin.extensions import ExtensionError, load_extensions

VERL_VERSION = "0.9.1"
REQUIRED = ("verl", "torch", "transformers", "ray", "hydra-core", "tensordict", "TransferQueue", "peft", "pyzmq")
EXTRAS = {
    "vllm": ("vllm", "autoregressive baselines on GPU"),
    "deepspeed": ("deepspeed", "DeepSpeedCPUAdam, an optimiser for offloaded parameters"),
    "e2b": ("e2b_code_interpreter", "code rewards in E2B sandboxes"),
    "open_clip_torch": ("open_clip", "CLIP and aesthetic rewards"),
    "hpsv2": ("open_clip", "HPSv2 rewards: the published checkpoint in open_clip"),
    "ocr": ("rapidocr_onnxruntime", "OCR rewards"),
    "digits": ("sklearn", "the digits example"),
    "dimoo": ("diffusers", "Lumina-DiMOO's image tokenizer"),
    "lm_eval": ("lm_eval", "lm-evaluation-harness"),
    "docs": ("mkdocs", "the documentation site"),
}
LIBRARIES = {"flash-attn": ("flash_attn", "packed attention on GPU; install it by its own instructions")}
PROGRAMS = {"bwrap": "isolation of code rewards", "nsjail": "isolation of code rewards"}


@dataclass
class Finding:
    """One line of the report.

    Attributes:
        subject: what was looked at.
        detail: what was found.
        ok: whether it is as it must be; None for information that cannot fail.
    """

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

        registered = importlib.import_module("maskgrpo_plugin.registration").register()
    except Exception as error:
        return [*findings, Finding("registration", f"{type(error).__name__}: {error}", False)]
    found = [(entry.subject, entry.present()) for entry in registered]
    return findings + [Finding(subject, "registered" if there else "missing", there) for subject, there in found]


def _extensions() -> list[Finding]:
    try:
        names = load_extensions()
    except ExtensionError as error:
        return [Finding("extensions", str(error), False)]
    return [Finding("extensions", ", ".join(names) or "none")]


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
    extras = {f"extra {name}": needed for name, needed in EXTRAS.items()}
    libraries = {f"library {name}": needed for name, needed in LIBRARIES.items()}
    findings = [Finding(name, f"{_state(module)} ({use})") for name, (module, use) in {**extras, **libraries}.items()]
    for program, use in PROGRAMS.items():
        findings.append(Finding(f"program {program}", f"{shutil.which(program) or 'not found'} ({use})"))
    return findings


def _state(module: str) -> str:
    """Whether a module can be imported, in words."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        return "not installed" if error.name == module else f"installed, but it needs {error.name}"
    except Exception as error:
        return f"installed, but its import fails: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    return "usable"


def main(argv: list[str] | None = None) -> int:
    """Print the report.

    Returns:
        0 where the plugin can work, 1 otherwise.
    """
    argparse.ArgumentParser(prog="python -m maskgrpo_plugin.doctor", description=__doc__).parse_args(argv)
    findings = _versions() + _devices() + _registered() + _extensions() + _extras()
    sys.stdout.write("\n".join(finding.line() for finding in findings) + "\n")
    failed = [finding.subject for finding in findings if finding.ok is False]
    sys.stdout.write(f"\n{'not usable: ' + ', '.join(failed) if failed else 'the plugin is usable'}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
