"""Bad records of a data set: counted by reason, the first ones by name, and refused or left out as the user says."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from maskgrpo_plugin.data.records import BadRecord, DataError

FIRST = 10
SKIP_OPTION = "--skip-bad"


@dataclass
class Faults:
    """Bad records that were met.

    Attributes:
        counts: how many, by reason.
        first: the first ten, each with its place and what is wrong.
    """

    counts: Counter[str] = field(default_factory=Counter)
    first: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Number of bad records."""
        return self.counts.total()

    def add(self, place: str, error: DataError) -> None:
        """Count one.

        Args:
            place: file, and line or member.
            error: what is wrong; a `BadRecord` says by which reason it is counted.
        """
        self.counts[error.reason if isinstance(error, BadRecord) else str(error)] += 1
        if len(self.first) < FIRST:
            self.first.append(f"{place}: {error}")

    def refuse_unless(self, skip: bool) -> None:
        """Raise DataError for bad records that are not to be left out; the message is `report`."""
        if self.total and not skip:
            raise DataError(f"{self.report()}\nmend them, or leave them out with {SKIP_OPTION}")

    def report(self) -> str:
        """Counts by reason, the most frequent first, and below them the first records."""
        counts = ", ".join(f"{count} × {reason}" for reason, count in self.counts.most_common())
        noun = "record" if self.total == 1 else "records"
        shown = "" if self.total <= FIRST else f", of which the first {FIRST} are"
        return "\n  ".join([f"{self.total} unusable {noun} ({counts}){shown}:", *self.first])

    def as_dict(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {"skipped": dict(sorted(self.counts.items())), "first_skipped": list(self.first)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Faults":
        """The inverse of `as_dict`."""
        return cls(Counter(values["skipped"]), list(values["first_skipped"]))
