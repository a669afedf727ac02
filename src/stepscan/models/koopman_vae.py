"""Koopman VAE: a generator of series whose latent states follow, nearly, a linear map.

    posterior   q(z_t | x_1 .. x_t)     a recurrent encoder
    prior       p(z_t | z_1 .. z_{t-1}) recurrent over states drawn before; zbar_t is a draw of it
    operator    A = argmin ||Zbar_1 - Zbar_0 A||_F over a batch of such paths, rows are states
    decoder     x_t from z_1 .. z_t     recurrent
    loss        |x - x'|^2 + alpha |Zbar_1 - Zbar_0 A|^2 + beta KL(q || p) [+ gamma (|eig A| - 1)^2]

Missing values: an encoder reads each value with a mask and the time since the last one, and only
values that are there are reconstructed. Source: Naiman et al. 2023, arXiv:2310.02619, section 4.
Ours: the irregular encoder is recurrent (theirs is a neural controlled differential equation), and
the eigenvalue penalty asks for modes on the unit circle, all of them or the largest few. With
`prior="gaussian"` latent states are independent standard normals: the VAE to compare with.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from stepscan.layers.projection import Linear
from stepscan.mixers import MIXERS

LEAST = -8.0  # of log variances: a spike on one point would buy an unbounded likelihood


@dataclass(frozen=True, kw_only=True)
class KoopmanConfig:
    """Sizes and weights of the losses."""

    channels: int
    """Values C of a step."""
    latent: int = 16
    """Size Z of a latent state."""
    width: int = 32
    """Of the recurrent networks."""
    mixer: str = "gru"
    """Of the encoder and the decoder: any causal one."""
    alpha: float = 0.05
    """Weight of the linear prediction of the prior's path."""
    beta: float = 1e-2
    """Weight of the divergence from the prior."""
    gamma: float = 0.0
    """Weight of the eigenvalue penalty."""
    modes: int = 2
    """The eigenvalues, largest first, that the penalty pulls to the unit circle."""
    prior: Literal["koopman", "gaussian"] = "koopman"

    def __post_init__(self) -> None:
        """Reject what cannot be built."""
        for name in ("channels", "latent", "width", "modes"):
            if getattr(self, name) < 1:
                raise ValueError(f"koopman vae: want {name} >= 1, got {getattr(self, name)}")
        for name in ("alpha", "beta", "gamma"):
            if getattr(self, name) < 0:
                raise ValueError(f"koopman vae: want {name} >= 0, got {getattr(self, name)}")
        if self.prior not in ("koopman", "gaussian"):
            raise ValueError(f"koopman vae: want prior koopman or gaussian, got {self.prior!r}")


class Losses(NamedTuple):
    """Means over what is there; `total` weighs them."""

    total: Float[Tensor, ""]
    reconstruction: Float[Tensor, ""]
    prediction: Float[Tensor, ""]
    divergence: Float[Tensor, ""]
    circle: Float[Tensor, ""]


class Path(NamedTuple):
    """Gaussian latent states and a draw of them, each [B T Z]."""

    mean: Tensor
    log_variance: Tensor
    drawn: Tensor


class KoopmanVAE(nn.Module):
    """See the module docstring."""

    def __init__(self, config: KoopmanConfig) -> None:
        super().__init__()
        self.config = config
        width, latent, channels = config.width, config.latent, config.channels
        mixer = MIXERS[config.mixer]()
        self.read = Linear(3 * channels, width)
        self.encoder = mixer.build(width)
        self.posterior = Linear(width, 2 * latent)
        self.remember = Linear(latent, width)
        self.memory = mixer.build(width)
        self.prior = Linear(width, 2 * latent)
        self.enter = Linear(latent, width)
        self.decoder = mixer.build(width)
        self.write = Linear(width, channels)

    def losses(
        self, x: Float[Tensor, "B T C"], *, rng: torch.Generator, times: Tensor | None = None
    ) -> Losses:
        """Of a batch of series; NaN is missing; `times` [B T], where steps are not a unit apart."""
        there = ~x.isnan()
        posterior = self.encode(x, rng=rng, times=times)
        said = self.decode(posterior.drawn)
        wrong = (said - x.nan_to_num()).square()[there].mean()
        zero = x.new_zeros(())
        if self.config.prior == "gaussian":
            divergence = _divergence(posterior, torch.zeros_like(posterior.mean), zero)
            return Losses(wrong + self.config.beta * divergence, wrong, zero, divergence, zero)
        path = self.foretell(posterior.drawn, rng=rng)
        matrix = operator(path.drawn)
        prediction = (path.drawn[:, 1:] - path.drawn[:, :-1] @ matrix).square().mean()
        divergence = _divergence(posterior, path.mean, path.log_variance)
        circle = zero
        if self.config.gamma:
            largest = torch.linalg.eigvals(matrix).abs().sort(descending=True).values
            circle = (largest[: self.config.modes] - 1).square().mean()
        total = wrong + self.config.alpha * prediction + self.config.beta * divergence
        total = total + self.config.gamma * circle
        return Losses(total, wrong, prediction, divergence, circle)

    def encode(
        self, x: Float[Tensor, "B T C"], *, rng: torch.Generator, times: Tensor | None = None
    ) -> Path:
        """The posterior of every step, from the steps so far."""
        there = ~x.isnan()
        inputs = torch.cat([x.nan_to_num(), there.to(x), since(there, times).to(x)], -1)
        y, _ = self.encoder(self.read(inputs))
        return _path(self.posterior(y), rng)

    def decode(self, z: Float[Tensor, "B T Z"]) -> Float[Tensor, "B T C"]:
        """Values from latent states."""
        y, _ = self.decoder(self.enter(z))
        return self.write(y)

    def draw(self, count: int, length: int, *, rng: torch.Generator) -> Path:
        """Paths of the prior."""
        like = self.prior.weight
        if self.config.prior == "gaussian":
            mean = like.new_zeros(count, length, self.config.latent)
            drawn = _normal(mean, rng)
            return Path(mean, torch.zeros_like(mean), drawn)
        z = like.new_zeros(count, 1, self.config.latent)
        steps, state = [], None
        for _ in range(length):
            y, state = self.memory(self.remember(z), state)
            steps.append(_path(self.prior(y), rng))
            z = steps[-1].drawn
        return Path(*(torch.cat(parts, 1) for parts in zip(*steps, strict=True)))

    def foretell(self, z: Float[Tensor, "B T Z"], *, rng: torch.Generator) -> Path:
        """The prior of every latent state, given those before it; zero stands before the first."""
        before = torch.cat([torch.zeros_like(z[:, :1]), z[:, :-1]], 1)
        return _path(self.prior(self.memory(self.remember(before))[0]), rng)

    @torch.no_grad()
    def generate(self, count: int, length: int, *, seed: int = 0) -> Float[Tensor, "B T C"]:
        """New series."""
        rng = torch.Generator().manual_seed(seed)
        return self.decode(self.draw(count, length, rng=rng).drawn)

    @torch.no_grad()
    def modes(self, count: int, length: int, *, seed: int = 0) -> Complex[Tensor, " Z"]:
        """Eigenvalues of the operator, largest first: how the latent states grow, fade and turn."""
        rng = torch.Generator().manual_seed(seed)
        found = torch.linalg.eigvals(operator(self.draw(count, length, rng=rng).drawn))
        return found[found.abs().argsort(descending=True)]


def operator(z: Float[Tensor, "B T Z"]) -> Float[Tensor, "Z Z"]:
    """The matrix A that takes every state nearest to the next: z_{t+1} ~ z_t A, by least squares.

    With the pseudo-inverse, through a solve that has gradients: a small ridge keeps paths that lie
    in fewer dimensions apart from it by no more than 1e-6 of their size.
    """
    before, after = z[:, :-1].flatten(0, 1), z[:, 1:].flatten(0, 1)
    gram = before.mT @ before
    ridge = 1e-7 * gram.diagonal().mean() * torch.eye(len(gram), dtype=z.dtype)
    return torch.linalg.solve(gram + ridge, before.mT @ after)


def since(there: Bool[Tensor, "B T C"], times: Tensor | None = None) -> Float[Tensor, "B T C"]:
    """Time from the last value of each channel to each step; from the beginning before any."""
    shape = there.shape
    if times is None:
        times = torch.arange(shape[1], dtype=torch.float32).expand(shape[:2])
    now = times[..., None].expand(shape)
    last = torch.where(there, now, now[:, :1]).cummax(1).values
    before = torch.cat([now[:, :1], last[:, :-1]], 1)
    return now - before


def _path(numbers: Float[Tensor, "... Z2"], rng: torch.Generator) -> Path:
    mean, spread = numbers.chunk(2, -1)
    spread = spread.clamp(min=LEAST, max=-LEAST)
    return Path(mean, spread, mean + (spread / 2).exp() * _normal(mean, rng))


def _normal(like: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=rng, dtype=like.dtype)


def _divergence(q: Path, mean: Tensor, log_variance: Tensor) -> Float[Tensor, ""]:
    """KL(q || p) of Gaussians, mean over all numbers of the latent states."""
    ratio = (q.log_variance - log_variance).exp()
    far = (q.mean - mean).square() / log_variance.exp()
    return 0.5 * (ratio + far - 1 - q.log_variance + log_variance).mean()
