"""Things found by name: a registry whose entries declare their own options as dataclass fields."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any, Generic, TypeVar

from maskgrpo_plugin.errors import OptionError

T = TypeVar("T")


class Registry(Generic[T]):
    """Dataclasses by name; the options of an entry are its fields, declared nowhere else.

    Args:
        kind: what the entries are, for error messages: `estimator`, `sampler`.
        key: the key that names an entry, for error messages.
    """

    def __init__(self, kind: str, key: str = "name"):
        self.kind, self.key = kind, key
        self._entries: dict[str, type[T]] = {}

    def register(self, name: str) -> Callable[[type[T]], type[T]]:
        """Decorator that adds a dataclass under `name`.

        Raises:
            ValueError: the name is taken by another class.
        """

        def add(entry: type[T]) -> type[T]:
            known = self._entries.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (entry.__module__, entry.__qualname__):
                raise ValueError(f"the {self.kind} {name!r} is already registered by {known.__module__}")
            self._entries[name] = entry
            return entry

        return add

    def names(self) -> tuple[str, ...]:
        """Registered names, in the order in which they came."""
        return tuple(self._entries)

    def get(self, name: str) -> type[T]:
        """The class of that name.

        Raises:
            OptionError: there is none; the message lists those there are.
        """
        if name not in self._entries:
            raise OptionError(self.key, name, f"allowed: {', '.join(self._entries)}")
        return self._entries[name]

    def build(self, name: str, **options: Any) -> T:
        """Make an entry from its options.

        Raises:
            OptionError: an unknown name or option, one that is missing, or a value that cannot work.
        """
        entry: Any = self.get(name)
        known = {field.name: field for field in fields(entry) if field.init}
        for option, value in options.items():
            if option not in known:
                raise OptionError(
                    option, value, f"the {self.kind} {name} has no such option; it has {', '.join(known)}"
                )
        for option, field in known.items():
            if option not in options and field.default is MISSING and field.default_factory is MISSING:
                raise OptionError(option, None, f"the {self.kind} {name} needs a value")
        return entry(**options)
