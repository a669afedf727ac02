"""The next generation reservoir (NVAR): what a larger model of a chaotic system has to beat.

    x_{t+1} = x_t + W [1, z_t, every product of two numbers of z_t],    z_t = [x_t, x_{t-1}, ...]

W by ridge regression, in closed form: no training to speak of, and it needs few samples, because
products of the state are what most such equations are made of. Source: Gauthier et al. 2021,
arXiv:2106.07688 (two delays, products of degree two). Our own: the samples are standardised, and
the penalty is in parts of the features' mean square.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class NVAR:
    """See the module docstring.

    Args:
        delays: Samples in z, the present one included.
        penalty: Of the ridge regression.
    """

    def __init__(self, *, delays: int = 2, penalty: float = 1e-6) -> None:
        if delays < 1 or not penalty > 0:
            raise ValueError(f"nvar: want delays >= 1 and penalty > 0, got {delays}, {penalty}")
        self.delays, self.penalty = delays, penalty
        self.weight: Float[Tensor, "F O"] | None = None

    def fit(self, x: Float[Tensor, "T O"]) -> "NVAR":
        """Learn the step from one sample to the next."""
        x = x.double()
        if len(x) <= self.delays:
            raise ValueError(f"nvar: want more than {self.delays} samples, got {len(x)}")
        self.mean, self.scale = x.mean(0), x.std(0).clamp_min(1e-12)
        x = (x - self.mean) / self.scale
        seen = x.unfold(0, self.delays, 1).flip(2)[:-1]  # [T' O delays], the newest first
        features = self._features(seen.mT.flatten(1))
        moved = x[self.delays :] - x[self.delays - 1 : -1]
        ridge = self.penalty * features.square().mean() * len(features)
        inner = features.T @ features
        inner.diagonal().add_(ridge)
        self.weight = torch.linalg.solve(inner, features.T @ moved)
        return self

    def forecast(self, x: Float[Tensor, "B T O"], steps: int) -> Float[Tensor, "B S O"]:
        """Run freely on from the last samples of each row."""
        if self.weight is None:
            raise ValueError("nvar: call fit first")
        if x.shape[1] < self.delays:
            raise ValueError(f"nvar: want at least {self.delays} samples a row, got {x.shape[1]}")
        x = (x.double() - self.mean) / self.scale
        past, said = list(x[:, -self.delays :].unbind(1)), []
        for _ in range(steps):
            newest_first = torch.cat(past[::-1], 1)
            past = [*past[1:], past[-1] + self._features(newest_first) @ self.weight]
            said.append(past[-1])
        return torch.stack(said, 1) * self.scale + self.mean

    @staticmethod
    def _features(z: Float[Tensor, "B D"]) -> Float[Tensor, "B F"]:
        first, second = torch.triu_indices(z.shape[1], z.shape[1])
        return torch.cat([torch.ones_like(z[:, :1]), z, z[:, first] * z[:, second]], 1)
