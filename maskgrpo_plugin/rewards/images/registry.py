"""The kinds of image scorers, and the making of one.

A kind is one file: a class or function that makes a scorer, under the decorator `register_scorer`, in `scorers/` or in
a module of the user's (`maskgrpo_plugin.extensions`); or it is named by its import path in the config.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from maskgrpo_plugin.errors import OptionError
from maskgrpo_plugin.imports import load_object
from maskgrpo_plugin.registry import Registry
from maskgrpo_plugin.rewards.images.sample import ImageScorer

ScorerFactory = Callable[..., ImageScorer]
Check = Callable[[Mapping[str, Any]], None]
AnyFactory = TypeVar("AnyFactory", bound=ScorerFactory)


@dataclass(frozen=True)
class ScorerEntry:
    """A kind of scorer.

    Attributes:
        factory: makes the scorer; called with the options as keyword arguments.
        requires: modules that making it imports.
        extra: the plugin's extra that installs them, if one does.
        check: called with the options on the driver, before anything is made; raises OptionError.
    """

    factory: ScorerFactory
    requires: tuple[str, ...] = ()
    extra: str | None = None
    check: Check | None = None


SCORERS: Registry[ScorerEntry] = Registry("scorer")


def register_scorer(
    name: str, *, requires: tuple[str, ...] = (), extra: str | None = None, check: Check | None = None
) -> Callable[[AnyFactory], AnyFactory]:
    """Decorator of a factory: adds a kind of scorer, so that `reward.image.scorers.<any>.kind` may name it.

    ```python
    @register_scorer("brightness")
    class Brightness:
        def score(self, samples):
            return [float(sample.image.mean()) / 255 for sample in samples]
    ```

    Args:
        name: the kind.
        requires, extra, check: see `ScorerEntry`.

    Raises:
        ValueError: the name is taken by another scorer.
    """

    def add(factory: AnyFactory) -> AnyFactory:
        SCORERS.add(name, ScorerEntry(factory, requires, extra, check))
        return factory

    return add


def scorer_kinds() -> tuple[str, ...]:
    """Names of the kinds of scorers, sorted."""
    return SCORERS.names()


def get_scorer(name: str) -> ScorerEntry:
    """The entry of that name.

    Raises:
        OptionError: there is none; the message lists those there are.
    """
    return SCORERS[name]


def resolve(factory: ScorerFactory | str) -> ScorerFactory:
    """A factory as it is; that of a registered kind, or of an import path, `package.module:name` or `file.py:name`.

    Raises:
        ValueError: an unknown kind, or an import path that leads to nothing that can be called.
    """
    if not isinstance(factory, str):
        return factory
    if ":" not in factory:
        return get_scorer(factory).factory
    found = load_object(factory)
    if not callable(found):
        raise ValueError(f"{factory} cannot be called")
    return found


def build_scorer(factory: ScorerFactory | str, options: Mapping[str, Any] | None = None) -> ImageScorer:
    """Make a scorer.

    Args:
        factory: a registered kind, an import path, or a factory.
        options: the factory's keyword arguments.

    Raises:
        OptionError: an option that the factory does not know or cannot use, or one that is missing.
        ValueError: an unknown kind or import path.
        ImportError: the scorer needs a library that is not there.
    """
    made = resolve(factory)
    check_option_names(made, options or {})
    scorer = made(**(options or {}))
    if not callable(getattr(scorer, "score", None)):
        raise ValueError(f"the factory {factory!r} made a {type(scorer).__name__}, which has no method `score`")
    return scorer


def check_option_names(factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise OptionError unless `factory(**options)` can be called."""
    parameters = inspect.signature(factory).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    names = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    for option, value in options.items():
        if option not in names and not takes_any:
            raise OptionError(option, value, f"there are {', '.join(names) or 'no options'}")
    for name in names:
        if parameters[name].default is inspect.Parameter.empty and name not in options:
            raise OptionError(name, None, "it must be given")
