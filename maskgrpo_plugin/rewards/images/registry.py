"""Rewards of images: a registry of scorers. Making one may need heavy libraries; importing this needs none."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.imports import load_object
from maskgrpo_plugin.rewards.images.sample import ImageSample, ImageScorer, ScorerUnavailable

ScorerFactory = Callable[..., ImageScorer]


@dataclass(frozen=True)
class ScorerEntry:
    """A kind of scorer.

    Attributes:
        factory: called with the options as keyword arguments; or its import path, `package.module:name` or
            `path/to/file.py:name`, which is read where the scorer is made.
        requires: modules that the factory imports.
        extra: the plugin's extra that installs them, if one does.
        check: called with the options before anything is made, raises OptionError; or its import path.
    """

    factory: ScorerFactory | str
    requires: tuple[str, ...] = ()
    extra: str | None = None
    check: Callable[[Mapping[str, Any]], None] | str | None = None


_HERE = "maskgrpo_plugin.rewards.images"
_SCORERS: dict[str, ScorerEntry] = {
    "clip": ScorerEntry(
        f"{_HERE}.clip:ClipScorer", ("open_clip",), "open_clip_torch", f"{_HERE}.clip:check_open_clip_options"
    ),
    "hpsv2": ScorerEntry(f"{_HERE}.hpsv2:make_hpsv2", ("open_clip",), "hpsv2", f"{_HERE}.hpsv2:check_hpsv2_options"),
    "aesthetic": ScorerEntry(
        f"{_HERE}.aesthetic:AestheticScorer",
        ("open_clip",),
        "open_clip_torch",
        f"{_HERE}.aesthetic:check_aesthetic_options",
    ),
    "ocr": ScorerEntry(f"{_HERE}.ocr:OcrScorer", ("rapidocr_onnxruntime",), "ocr"),
    "digits": ScorerEntry(f"{_HERE}.folders:DigitScorer", check=f"{_HERE}.folders:check_folder"),
    "clip_folder": ScorerEntry(f"{_HERE}.folders:ClipFolderScorer", check=f"{_HERE}.folders:check_folder"),
    "remote": ScorerEntry(
        "maskgrpo_plugin.rewards.images.remote:make_remote",
        check="maskgrpo_plugin.rewards.images.remote:check_remote_options",
    ),
}


def scorers() -> tuple[str, ...]:
    """Names of the kinds of scorers, sorted."""
    return tuple(sorted(_SCORERS))


def get_scorer(name: str) -> ScorerEntry:
    """The entry of that name.

    Raises:
        ValueError: there is none; the message lists those there are.
    """
    if name not in _SCORERS:
        raise ValueError(f"unknown scorer {name!r}; available: {', '.join(scorers())}")
    return _SCORERS[name]


def register_scorer(
    name: str,
    factory: ScorerFactory | str,
    *,
    requires: tuple[str, ...] = (),
    extra: str | None = None,
    check: Callable[[Mapping[str, Any]], None] | str | None = None,
) -> None:
    """Add a kind of scorer, so that a config's `reward.image.scorers.<any>.kind` may name it; idempotent.

    The config is read in several processes: register in a module that each of them imports (`verl.plugins`), or give
    `factory` in the config instead.

    Args:
        name: the kind.
        factory, requires, extra, check: see `ScorerEntry`.

    Raises:
        ValueError: the name is taken by another scorer.
    """
    entry = ScorerEntry(factory, requires, extra, check)
    if _SCORERS.get(name, entry) != entry:
        raise ValueError(f"the scorer {name!r} is already registered")
    _SCORERS[name] = entry


def resolve(value: Any) -> Any:
    """An object as it is, an import path's object."""
    return load_object(value) if isinstance(value, str) else value


def build_scorer(factory: ScorerFactory | str, options: Mapping[str, Any] | None = None) -> ImageScorer:
    """Make a scorer.

    Args:
        factory: a registered name, an import path, or a factory.
        options: the factory's keyword arguments.

    Raises:
        OptionError: an option that the factory does not know or cannot use, or one that is missing.
        ValueError: an unknown name or import path.
        ImportError: the scorer needs a library that is not there.
    """
    if isinstance(factory, str) and ":" not in factory:
        factory = get_scorer(factory).factory
    made = resolve(factory)
    check_option_names(made, options or {})
    scorer = made(**(options or {}))
    if not callable(getattr(scorer, "score", None)):
        raise ValueError(f"the factory {factory!r} made a {type(scorer).__name__}, which has no method `score`")
    return scorer


def check_option_names(factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise OptionError unless `factory(**options)` can be called."""
    if not callable(factory):
        raise ValueError(f"{factory!r} cannot be called")
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for option, value in options.items():
        if option not in names and not takes_any:
            raise OptionError(option, value, f"there are {', '.join(names) or 'no options'}")
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            raise OptionError(name, None, "it must be given")


__all__ = [
    "ImageSample",
    "ImageScorer",
    "ScorerEntry",
    "ScorerUnavailable",
    "build_scorer",
    "check_option_names",
    "get_scorer",
    "load_object",
    "register_scorer",
    "resolve",
    "scorers",
]
