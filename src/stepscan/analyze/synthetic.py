"""How far made-up series are from real ones: whether a network can tell them apart, and learn from
them what is true of the real ones.

    discriminative   |accuracy - 1/2| of a GRU that tells real from made up, on series held out:
                     0 is indistinguishable, 1/2 is told apart every time
    predictive       mean absolute error, on real series, of the next value foretold by a GRU that
                     has learned from the made-up ones

    nearest          whether they lie nearer to the series they were learned from than real ones do
                     that were never seen: then the generator has learned by heart

Source of the first two: Yoon, Jarrett and van der Schaar 2019 (TimeGAN).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers import MIXERS

WIDTH, ROWS, RATE, HELD_OUT = 24, 64, 3e-3, 0.25
HEART = 1e-3  # below this chance what was made is too near to what it was learned from


class Judge(nn.Module):
    """A GRU and a map of every state."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.into, self.out = Linear(channels, WIDTH), Linear(WIDTH, outputs)
        self.cell = MIXERS["gru"]().build(WIDTH)

    def forward(self, x: Float[Tensor, "B T C"]) -> Float[Tensor, "B T O"]:
        """What is said after every step."""
        return self.out(self.cell(self.into(x))[0])


def discriminative(
    real: Float[Tensor, "N T C"], made: Float[Tensor, "M T C"], *, steps: int = 400, seed: int = 0
) -> float:
    """See the module docstring; as many of each are taken as there are of the fewer."""
    count = min(len(real), len(made))
    rng = torch.Generator().manual_seed(seed)
    both = [x[torch.randperm(len(x), generator=rng)[:count]] for x in (real, made)]
    held = max(1, round(HELD_OUT * count))
    label = torch.cat([torch.ones(count - held), torch.zeros(count - held)])
    judge = _trained(
        torch.cat([x[held:] for x in both]).float(),
        lambda judge, x, at: F.binary_cross_entropy_with_logits(judge(x)[:, -1, 0], label[at]),
        outputs=1,
        steps=steps,
        rng=rng,
    )
    with torch.no_grad():
        right = [
            ((judge(x[:held].float())[:, -1, 0] > 0) == is_real).double().mean()
            for x, is_real in zip(both, (True, False), strict=True)
        ]
    return abs(float(sum(right) / 2) - 0.5)


def predictive(
    real: Float[Tensor, "N T C"], made: Float[Tensor, "M T C"], *, steps: int = 400, seed: int = 0
) -> float:
    """See the module docstring."""
    judge = _trained(
        made.float(),
        lambda judge, x, at: (judge(x[:, :-1]) - x[:, 1:]).abs().mean(),
        outputs=real.shape[-1],
        steps=steps,
        rng=torch.Generator().manual_seed(seed),
    )
    with torch.no_grad():
        return float((judge(real[:, :-1].float()) - real[:, 1:]).abs().mean())


def _trained(
    x: Tensor,
    loss: Callable[[Judge, Tensor, Tensor], Tensor],
    *,
    outputs: int,
    steps: int,
    rng: torch.Generator,
) -> Judge:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(1 << 30, (), generator=rng)))
        judge = Judge(x.shape[-1], outputs)
    optimizer = torch.optim.Adam(judge.parameters(), RATE)
    for _ in range(steps):
        at = torch.randint(len(x), (ROWS,), generator=rng)
        wrong = loss(judge, x[at], at)
        optimizer.zero_grad()
        wrong.backward()
        optimizer.step()
    return judge


class Nearest(NamedTuple):
    """How near made-up series lie to those that their generator learned from."""

    made: float
    """Median distance from a made-up series to its nearest training one: root mean square over the
    steps and channels that both know."""
    held_out: float
    """The same from real series that the generator never saw."""
    p: float
    """Chance of distances as small as this, were the made-up ones no nearer than the held-out ones
    (one-sided Mann-Whitney test, normal approximation)."""
    copies: int
    """Made-up series at less than half the least distance between any two real ones."""

    @property
    def sound(self) -> bool:
        """Nothing learned by heart is seen."""
        return self.copies == 0 and self.p >= HEART


def nearest(
    made: Float[Tensor, "M T C"], train: Float[Tensor, "N T C"], held_out: Float[Tensor, "K T C"]
) -> Nearest:
    """The nearest-neighbour test for training rows that leak into what was made.

    Args:
        made: What a generator made.
        train: What it learned from. NaN is missing, as after the end of shorter series.
        held_out: Real series that it never saw.
    """
    near, real = distances(made, train).amin(1), distances(held_out, train).amin(1)
    among = distances(train, train).fill_diagonal_(torch.inf).flatten()
    least = torch.cat([among, real])
    least = least[least > 0].amin()  # the same series twice says nothing of how near others lie
    both = torch.cat([near, real])
    rank = (both[:, None] > both).sum(1) + ((both[:, None] == both).sum(1) + 1) / 2
    m, k = len(near), len(real)
    wins = rank[:m].sum() - m * (m + 1) / 2
    spread = math.sqrt(m * k * (m + k + 1) / 12)
    p = torch.special.ndtr((wins - m * k / 2 + 0.5) / spread)
    copies = int((near < least / 2).sum())
    return Nearest(float(near.median()), float(real.median()), float(p), copies)


def distances(a: Float[Tensor, "M T C"], b: Float[Tensor, "N T C"]) -> Float[Tensor, "M N"]:
    """Root mean square over what both know; infinite where that is nothing."""
    a, b = a.double().flatten(1), b.double().flatten(1)
    rows = []
    for one in a:
        squares = (one - b).square()
        rows.append(squares.nansum(1) / (~squares.isnan()).sum(1))
    return torch.stack(rows).sqrt().nan_to_num(torch.inf)
