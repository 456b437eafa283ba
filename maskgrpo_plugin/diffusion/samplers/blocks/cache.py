"""Keys and values that a block of semi-autoregressive sampling keeps (Fast-dLLM, arXiv 2505.22618, Section 3.2)."""

from dataclasses import dataclass, field

from torch import Tensor

CACHES = ("none", "prefix", "dual")


@dataclass
class BlockCache:
    """Keys and values of every layer and column, filled by a pass over the whole canvas.

    A later pass over the columns from `first_column` on writes its own keys and values over theirs, and attends to all.

    Attributes:
        keys, values: one tensor per layer, (B, H, L, d).
    """

    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    @property
    def filled(self) -> bool:
        """Whether a pass has been made."""
        return bool(self.keys)

    def update(self, layer: int, key: Tensor, value: Tensor, first_column: int) -> tuple[Tensor, Tensor]:
        """Keep a layer's keys and values (B, H, W, d) of W columns; returns those of all L columns."""
        if layer == len(self.keys):
            self.keys.append(key)
            self.values.append(value)
            return key, value
        last = first_column + key.shape[2]
        self.keys[layer][:, :, first_column:last] = key
        self.values[layer][:, :, first_column:last] = value
        return self.keys[layer], self.values[layer]

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows (N,) of the B."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]
