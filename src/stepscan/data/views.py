"""A part of a part: some of its sequences, or their beginnings, without a copy of the numbers."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.data.base import Packed


class View(Packed):
    """Some steps of another part, in its order; the first of them must start a sequence."""

    def __init__(self, packed: Packed, at: Int[Tensor, " M"]) -> None:
        tokens = None if packed.tokens is None else packed.tokens[at]
        super().__init__(packed.starts[at], tokens=tokens)
        self.packed, self.at = packed, at

    @property
    def reals(self) -> Float[Tensor, "M C"] | None:
        """As in the part that is looked at."""
        return self.packed.inputs_at(self.at)[1]

    def inputs_at(
        self, at: Int[Tensor, "..."]
    ) -> tuple[Int[Tensor, "... F"] | None, Float[Tensor, "... C"] | None]:
        """As in the part that is looked at."""
        return self.packed.inputs_at(self.at[at])

    def targets_at(self, at: Int[Tensor, "..."]) -> dict[str, Tensor]:
        """As in the part that is looked at."""
        return self.packed.targets_at(self.at[at])


def sequences(packed: Packed, chosen: Int[Tensor, " S"]) -> View:
    """The chosen sequences, whole."""
    lengths, begins = packed.lengths[chosen], packed.begins[chosen]
    before = (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    steps = torch.arange(int(lengths.sum())) - before
    return View(packed, begins.repeat_interleave(lengths) + steps)


def spread(packed: Packed, most: int) -> Packed:
    """Whole sequences, evenly spread over the part, about `most` steps in all."""
    if len(packed) <= most:
        return packed
    count = max(1, len(packed.begins) * most // len(packed))
    return sequences(packed, torch.linspace(0, len(packed.begins) - 1, count).round().long())


def shortened(packed: Packed, most: int) -> Packed:
    """Every sequence cut after the same number of steps, so that about `most` remain in all."""
    if len(packed) <= most:
        return packed
    lengths = packed.lengths.sort().values
    longer = torch.arange(len(lengths) - 1, -1, -1)
    kept = lengths.cumsum(0) + lengths * longer  # in all, if every sequence were cut to this one's
    fits = int((kept <= most).sum())
    cap = max(1, (most - int(lengths[:fits].sum())) // max(1, len(lengths) - fits))
    steps = torch.arange(len(packed)) - packed.begins.repeat_interleave(packed.lengths)
    return View(packed, (steps < cap).nonzero()[:, 0])
