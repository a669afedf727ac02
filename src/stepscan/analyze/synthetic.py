"""How far made-up series are from real ones: whether a network can tell them apart, and learn from
them what is true of the real ones.

    discriminative   |accuracy - 1/2| of a GRU that tells real from made up, on series held out:
                     0 is indistinguishable, 1/2 is told apart every time
    predictive       mean absolute error, on real series, of the next value foretold by a GRU that
                     has learned from the made-up ones

Source: Yoon, Jarrett and van der Schaar 2019 (TimeGAN).
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear
from stepscan.mixers import MIXERS

WIDTH, ROWS, RATE, HELD_OUT = 24, 64, 3e-3, 0.25


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
