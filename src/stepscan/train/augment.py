"""Disturbances of series that leave their meaning alone, drawn anew at every training step.

    jitter=S     noise of deviation S on every value
    scale=S      every channel of a sequence times exp(S z), z standard normal
    magnitude=S  the same with a factor that drifts smoothly along the sequence
    warp=S       steps are read at times that run unevenly: between speeds e^-S and e^S
    drop=P       every step is zero (the mean) with probability P

All act within a sequence, never across a reset; a sequence keeps its length, its first and its last
step in place, so that what is asked there stays right. Values are linearly interpolated.

Sources: Um et al. 2017, arXiv:1706.00527 (jittering, scaling, magnitude and time warping; smooth
curves here run linearly through KNOTS random points instead of along a cubic spline); dropping
whole steps is time masking as in SpecAugment (Park et al. 2019, arXiv:1904.08779), by single steps.
"""

from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stepscan.names import did_you_mean

KNOTS = 4  # of a smooth random curve along a sequence


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How strongly to disturb; 0 is not at all. See the module docstring."""

    jitter: float = 0.0
    scale: float = 0.0
    magnitude: float = 0.0
    warp: float = 0.0
    drop: float = 0.0

    def __post_init__(self) -> None:
        """Reject negative strengths."""
        for f in fields(self):
            value = getattr(self, f.name)
            if not (0 <= value < 10) or (f.name == "drop" and value >= 1):
                limit = 1 if f.name == "drop" else 10
                raise ValueError(f"augment: want 0 <= {f.name} < {limit}, got {value}")

    def __call__(
        self, reals: Float[Tensor, "B T C"], resets: Bool[Tensor, "B T"]
    ) -> Float[Tensor, "B T C"]:
        """Disturbed values, by torch's random numbers; every row begins a sequence."""
        place, length, which = within(resets)
        if self.warp:
            curve = self._curve(resets, place, length, which, 1)[..., 0]
            reals = _read_at(reals, place, length, (self.warp * curve.clamp(-1, 1)).exp())
        if self.scale:
            factor = torch.randn(*resets.shape, reals.shape[-1]) * self.scale
            first = torch.arange(resets.shape[1]) - place  # of the sequence of each step
            reals = reals * factor.exp().gather(1, first[..., None].expand_as(reals))
        if self.magnitude:
            curve = self._curve(resets, place, length, which, reals.shape[-1])
            reals = reals * (self.magnitude * curve).exp()
        if self.jitter:
            reals = reals + self.jitter * torch.randn_like(reals)
        if self.drop:
            reals = reals * (torch.rand(*resets.shape, 1) >= self.drop)
        return reals

    @staticmethod
    def _curve(
        resets: Tensor, place: Tensor, length: Tensor, which: Tensor, channels: int
    ) -> Float[Tensor, "B T C"]:
        """A standard normal curve along every sequence: linear through KNOTS points."""
        most = int(which.max()) + 1
        knots = torch.randn(len(resets), most * KNOTS, channels)
        at = place / (length - 1).clamp_min(1) * (KNOTS - 1)
        low = at.floor().clamp(max=KNOTS - 2)
        share = (at - low)[..., None]
        index = (which * KNOTS + low.long())[..., None].expand(-1, -1, channels)
        return (1 - share) * knots.gather(1, index) + share * knots.gather(1, index + 1)


def parse(told: str) -> Augment | None:
    """Read "jitter=0.1,warp=0.2"; nothing is None.

    Raises:
        ValueError: a name is not known, or a strength is not a number in range.
    """
    known = [f.name for f in fields(Augment)]
    found: dict[str, float] = {}
    for word in filter(None, (w.strip() for w in told.split(","))):
        name, _, value = word.partition("=")
        if name not in known:
            near = did_you_mean(name, known)
            raise ValueError(f"augment: unknown {name!r}.{near} Known: {', '.join(known)}")
        try:
            found[name] = float(value)
        except ValueError:
            raise ValueError(f"augment: want {name}=NUMBER, got {word!r}") from None
    return Augment(**found) if found else None


def within(resets: Bool[Tensor, "B T"]) -> tuple[Tensor, Tensor, Tensor]:
    """Of each step: its place in its sequence, the steps of that in this batch, and its number."""
    steps = torch.arange(resets.shape[1]).expand_as(resets)
    starts = resets.clone()
    starts[:, 0] = True
    which = starts.cumsum(1) - 1
    first = torch.where(starts, steps, 0).cummax(1).values
    length = torch.zeros_like(which).scatter_add(1, which, torch.ones_like(which))
    return steps - first, length.gather(1, which), which


def _read_at(
    reals: Float[Tensor, "B T C"], place: Tensor, length: Tensor, speed: Float[Tensor, "B T"]
) -> Float[Tensor, "B T C"]:
    """Values read at times that go from the first to the last step at these speeds."""
    first = torch.arange(place.shape[1]) - place
    run = torch.where(place > 0, speed, 0).double().cumsum(1)
    run = run - run.gather(1, first)  # since the first step of the sequence
    whole = run.gather(1, first + length - 1)
    at = run / whole.clamp_min(1e-9) * (length - 1) + first
    low = torch.minimum(at.floor().long(), (first + length - 2).clamp_min(first))
    share = (at - low).clamp(0, 1)[..., None].to(reals.dtype)
    high = torch.minimum(low + 1, first + length - 1)
    wide = (-1, -1, reals.shape[-1])
    below = reals.gather(1, low[..., None].expand(*wide))
    above = reals.gather(1, high[..., None].expand(*wide))
    return (1 - share) * below + share * above
