"""Names and what they stand for: registries of kinds of things, and what a module has put into verl's registries."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from typing import Any, Generic, NamedTuple, TypeVar

from maskgrpo_plugin.errors import OptionError

Entry = TypeVar("Entry")


class Registered(NamedTuple):
    """One entry that a module adds to a registry of verl or transformers when it is imported; the doctor looks for it.

    Attributes:
        subject: kind and name, such as `trainer maskgrpo_sync`.
        present: whether the registry holds it.
    """

    subject: str
    present: Callable[[], bool]


class Registry(Mapping[str, Entry], Generic[Entry]):
    """Things of one kind by name, in the order of their registration.

    Args:
        kind: what the things are, for messages: `task`, `scorer`.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Add `entry` under `name`; adding an equal entry again changes nothing.

        Raises:
            ValueError: the name is taken by another entry.
        """
        if self._entries.get(name, entry) != entry:
            raise ValueError(f"the {self.kind} {name!r} is already registered")
        self._entries[name] = entry

    def __getitem__(self, name: str) -> Entry:
        """The entry of that name.

        Raises:
            OptionError: there is none; the message lists those there are.
        """
        if name not in self._entries:
            raise OptionError(self.kind, name, f"unknown {self.kind}; available: {', '.join(self.names()) or 'none'}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> tuple[str, ...]:
        """The names, sorted."""
        return tuple(sorted(self._entries))


class ClassRegistry(Registry[type[Entry]]):
    """Dataclasses of one kind by name; the options of an entry are its fields, declared nowhere else."""

    def register(self, name: str) -> Callable[[type[Entry]], type[Entry]]:
        """Decorator that adds a dataclass under `name`; the same class again, after a reload, replaces it.

        Raises:
            ValueError: the name is taken by another class.
        """

        def decorate(entry: type[Entry]) -> type[Entry]:
            known = self._entries.get(name)
            if known is not None and (known.__module__, known.__qualname__) == (entry.__module__, entry.__qualname__):
                self._entries[name] = entry
            self.add(name, entry)
            return entry

        return decorate

    def build(self, name: str, **options: Any) -> Entry:
        """Make an entry from its options.

        Raises:
            OptionError: an unknown name or option, one that is missing, or a value that cannot work.
        """
        entry: Any = self[name]
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
