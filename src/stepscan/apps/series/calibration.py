"""What the validation part says about the quantiles of a trained model: how wide, how related.

Bands. A network that has learned its training part well is too sure of itself elsewhere. Each level
tau is moved away from the median m, or towards it, by one factor:

    q'_tau = m + s_tau (q_tau - m)        s_tau: so that a share tau of the values lies below q'_tau

over all held-out values of the validation part, with the finite-sample rank of split conformal
prediction (rank ceil((n + 1) p) of n; Vovk et al. 2005; for quantile regression Romano et al. 2019,
arXiv:1905.03222; distances in units of the band as in CQR-m of Sesia and Candes 2020,
arXiv:1909.05433, here for each side on its own). The median stays. The guarantee of conformal
prediction wants exchangeable errors, which those of a series that changes are not: the correction
is an honest estimate, not a promise.

Paths. The marginals say nothing of how the steps of one future hang together. Errors are turned
into normal scores z_h = Phi^-1(F_h(y_h)); their correlation between neighbouring steps ahead, rho,
is measured, and a path is a first-order autoregression of scores put through the quantiles:

    z_1 ~ N(0, 1),   z_h = rho z_{h-1} + sqrt(1 - rho^2) e_h,   y_h = F_h^-1(Phi(z_h))

a Gaussian copula with correlation rho^|i-j|. Between the levels, and beyond the outermost ones, the
quantile function is linear in z, that is, of a piecewise normal distribution.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from stepscan.models import SequenceModel
from stepscan.models.heads import Forecast

FEWEST = 40  # values below which the bands stay as they were learned
WIDEST = 20.0  # factor


def calibrate(
    model: SequenceModel,
    actual: Float[Tensor, "M H"],
    scale: Float[Tensor, " M"],
    forecast: Callable[[], Float[Tensor, "M H Q"]],
) -> None:
    """Set `stretch` and `persistence` of the model's head; a head without them stays as it is.

    Args:
        model: In place.
        actual: The values that came, NaN where unknown.
        scale: Real units in a unit of the targets: errors of all series count alike.
        forecast: The model's quantiles of the same values.
    """
    head, config = model.head, model.config.head
    stretch, persistence = getattr(head, "stretch", None), getattr(head, "persistence", None)
    if not isinstance(config, Forecast) or stretch is None or persistence is None:
        return
    levels = config.quantiles
    with torch.no_grad():
        stretch.fill_(1.0)
        persistence.zero_()
        said = forecast() / scale[:, None, None]
        actual = actual / scale[:, None]
        stretch.copy_(torch.tensor(stretches(said, actual, levels)))
        said = forecast() / scale[:, None, None]
        persistence.fill_(_persistence(normal_scores(said, actual, levels)))


def stretches(
    said: Float[Tensor, "M H Q"], actual: Float[Tensor, "M H"], levels: Sequence[float]
) -> list[float]:
    """The factor of each level, see the module docstring; 1 where there is too little to tell."""
    asked = ~actual.isnan()
    count = int(asked.sum())
    middle = len(levels) // 2
    if count < FEWEST:
        return [1.0] * len(levels)
    center = said[..., middle][asked]
    error = actual[asked] - center
    factors = []
    for i, level in enumerate(levels):
        if i == middle:
            factors.append(1.0)
            continue
        ratio = error / (said[..., i][asked] - center)
        # Below the median a value is outside where its ratio is larger, as above it.
        share = level if i > middle else 1 - level
        rank = min(count, math.ceil((count + 1) * share))
        factors.append(float(ratio.kthvalue(rank).values.clamp(0.0, WIDEST)))
    return factors


def normal_scores(
    said: Float[Tensor, "... Q"], actual: Float[Tensor, "..."], levels: Sequence[float]
) -> Float[Tensor, "..."]:
    """Phi^-1(F(y)) of values under quantiles that ascend; NaN stays NaN."""
    return _piecewise(actual[..., None], said, _scores(said, levels).expand_as(said))[..., 0]


def at_scores(
    said: Float[Tensor, "... Q"], scores: Float[Tensor, "... N"], levels: Sequence[float]
) -> Float[Tensor, "... N"]:
    """F^-1(Phi(z)): the values at N normal scores each."""
    knots = _scores(said, levels).expand_as(said)
    return _piecewise(scores, knots, said)


def at_levels(
    said: Float[Tensor, "... Q"], wanted: Sequence[float], levels: Sequence[float]
) -> Float[Tensor, "... N"]:
    """Quantiles at levels that were not learned, from those that were; at those, the same.

    Raises:
        ValueError: a level outside of those learned, of which nothing is known.
    """
    for level in wanted:
        if not levels[0] - 1e-9 <= level <= levels[-1] + 1e-9:
            raise ValueError(
                f"forecast: want quantiles from {levels[0]:g} to {levels[-1]:g}, which is what the "
                f"model learned, got {level:g}; for the tails draw samples"
            )
    if list(wanted) == list(levels):
        return said
    scores = torch.special.ndtri(torch.tensor(wanted, dtype=said.dtype))
    return at_scores(said, scores.expand(*said.shape[:-1], -1), levels)


def sample_paths(
    said: Float[Tensor, "M H Q"],
    levels: Sequence[float],
    persistence: float,
    count: int,
    rng: torch.Generator,
) -> Float[Tensor, "M H N"]:
    """`count` futures each, whose marginals are the quantiles; see the module docstring."""
    noise = torch.randn(*said.shape[:2], count, generator=rng, dtype=said.dtype)
    scores = noise.clone()
    for h in range(1, said.shape[1]):
        scores[:, h] = persistence * scores[:, h - 1] + math.sqrt(1 - persistence**2) * noise[:, h]
    return at_scores(said, scores, levels)


def _scores(said: Tensor, levels: Sequence[float]) -> Float[Tensor, " Q"]:
    return torch.special.ndtri(torch.tensor(levels, dtype=said.dtype))


def _piecewise(
    x: Float[Tensor, "... N"], knots: Float[Tensor, "... Q"], values: Float[Tensor, "... Q"]
) -> Float[Tensor, "... N"]:
    """Linear between knots that ascend, and on beyond them; where knots coincide, the first."""
    if knots.shape[-1] == 1:
        return values + (x - knots)
    place = torch.searchsorted(knots.contiguous(), x.contiguous()).clamp(1, knots.shape[-1] - 1)
    left, right = (knots.gather(-1, place - 1), knots.gather(-1, place))
    low, high = (values.gather(-1, place - 1), values.gather(-1, place))
    slope = (high - low) / (right - left)
    slope = torch.where(right > left, slope, torch.zeros_like(slope))
    return low + slope * (x - left)


def _persistence(scores: Float[Tensor, "M H"]) -> float:
    """Correlation of neighbouring steps, within 0 and 0.99; scores this far out count less."""
    one, two = scores[:, :-1].clamp(-3, 3), scores[:, 1:].clamp(-3, 3)
    both = ~(one.isnan() | two.isnan())
    if int(both.sum()) < FEWEST:
        return 0.0
    pair = torch.stack([one[both], two[both]])
    return float(torch.corrcoef(pair)[0, 1].nan_to_num(0.0).clamp(0.0, 0.99))
