"""Keys and values of finished blocks, which block-causal attention never changes: an exact cache."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class PrefixCache:
    """Keys and values of every layer, those of a token in the column of its position in the row.

    A pass over a few columns of each row writes their keys and values in place, and attends to the columns of its own
    block and of those before it. What a pass wrote of a block that still held masks, the next one writes over.

    Rows come and go layer by layer, so that no second copy of the whole is ever held.

    Attributes:
        keys, values: one tensor per layer, (B, H, C + 1, d); the last column takes what a padded column would write.
        columns: C, how many columns there are; see `reserve`.
        used: how many of them, from the first, hold anything; a pass attends to no others.
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    columns: int = 0
    used: int = 0

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(part.numel() * part.element_size() for part in (*self.keys, *self.values))

    def reserve(self, columns: int) -> None:
        """Have at least so many columns."""
        if columns > self.columns:
            for of in (self.keys, self.values):
                for layer, part in enumerate(of):
                    of[layer] = F.pad(part, (0, 0, 0, columns - self.columns))
            self.columns = columns

    def update(self, layer: int, key: Tensor, value: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Write a layer's keys and values (B, H, W, d) at the columns `slots` (B, W), which are C for padding.

        Returns:
            Keys and values of the used columns, (B, H, used, d).
        """
        if layer == len(self.keys):
            shape = (key.shape[0], key.shape[1], self.columns + 1, key.shape[3])
            self.keys.append(key.new_zeros(shape))
            self.values.append(value.new_zeros(shape))
        index = slots[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
        self.keys[layer].scatter_(2, index, key)
        self.values[layer].scatter_(2, index, value)
        return self.keys[layer][:, :, : self.used], self.values[layer][:, :, : self.used]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,) of the B; a row may be named twice."""
        for of in (self.keys, self.values):
            for layer, part in enumerate(of):
                of[layer] = part[rows]

    def join(self, other: "PrefixCache") -> None:
        """Add the rows of another cache of the same model."""
        if not self.keys:
            self.keys, self.values, self.columns = other.keys, other.values, other.columns
            return
        columns = max(self.columns, other.columns)
        self.reserve(columns)
        other.reserve(columns)
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, part in enumerate(theirs):
                mine[layer] = torch.cat([mine[layer], part])
