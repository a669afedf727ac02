"""Nearest codes of a codebook, and codes that follow what they stand for.

    nearest_t = argmin_c |x_t - code_c|^2              for codes of one length: the largest x . code
    code_c    = decay code_c + (1 - decay) mean of the x nearest to it             online k-means

Codes are one set per head, [H C K]. Sources: vector quantisation with moving averages as in VQ-VAE
(arXiv:1711.00937), spherical k-means as in the Routing Transformer (arXiv:2003.05997).
Several levels of codes, each for what the ones before it leave, are `residual_vq`.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F


def closeness(
    x: Float[Tensor, "B T H K"], codes: Float[Tensor, "H C K"]
) -> Float[Tensor, "B T H C"]:
    """x . code - |code|^2 / 2: largest where the distance is smallest."""
    codes = codes.to(x.dtype)
    return torch.einsum("bthk,hck->bthc", x, codes) - codes.square().sum(-1) / 2


def nearest(x: Float[Tensor, "B T H K"], codes: Float[Tensor, "H C K"]) -> Int[Tensor, "B T H"]:
    """The nearest code of each x; the first of equals."""
    return closeness(x, codes).argmax(-1)


def moved_codes(
    codes: Float[Tensor, "H C K"], x: Float[Tensor, "B T H K"], *, decay: float, unit: bool = False
) -> Float[Tensor, "H C K"]:
    """One step of online k-means; a code that is nearest to none stays. `unit`: of length 1."""
    x = x.to(codes.dtype)
    sent = F.one_hot(nearest(x, codes), codes.shape[1]).to(x.dtype)
    count = sent.sum((0, 1))[..., None]
    mean = torch.einsum("bthc,bthk->hck", sent, x) / count.clamp(min=1)
    codes = torch.where(count > 0, decay * codes + (1 - decay) * mean, codes)
    return F.normalize(codes, dim=-1) if unit else codes


class Residual(NamedTuple):
    """What `residual_vq` says of x."""

    codes: Int[Tensor, "N M"]
    """The nearest code of each level."""
    chances: Float[Tensor, "N M C"]
    """Of each code: one-hot where the assignment is hard."""
    value: Float[Tensor, "N K"]
    """The sum of the codes, each weighted by its chance."""


def residual_vq(
    x: Float[Tensor, "N K"], codes: Float[Tensor, "M C K"], *, tau: float | None = None
) -> Residual:
    """Quantise x, then what is left of it, level by level.

        chance_m = softmax_c(-|r_m - code_mc|^2 / tau)      hard with tau None: the nearest code
        r_{m+1}  = r_m - sum_c chance_mc code_mc            r_1 = x

    Sources: residual quantisation as in RQ-VAE (Lee et al. 2022, arXiv:2203.01941) and TIGER's
    semantic identifiers (arXiv:2305.05065); soft ones with a falling temperature as in UniGRec
    (arXiv:2601.17438). As tau goes to 0 the soft assignment becomes the hard one.

    Args:
        x: What to quantise.
        codes: A set of C codes for each of M levels.
        tau: Temperature; None for hard codes, through which no gradient flows to x.
    """
    if tau is not None and not tau > 0:
        raise ValueError(f"residual_vq: want tau above 0, or None for hard codes, got {tau}")
    left, chosen, chances = x, [], []
    for level in codes:
        near = -torch.cdist(left, level, compute_mode="donot_use_mm_for_euclid_dist").square()
        best = near.argmax(-1)
        hard = F.one_hot(best, len(level)).to(x.dtype)
        chance = hard if tau is None else (near / tau).softmax(-1)
        chosen.append(best)
        chances.append(chance)
        left = left - chance @ level
    return Residual(torch.stack(chosen, 1), torch.stack(chances, 1), x - left)


def perplexity(chances: Float[Tensor, "N M C"]) -> Float[Tensor, " M"]:
    """How many codes of each level are in use: exp of the entropy of their mean chance."""
    mean = chances.mean(0)
    return torch.special.entr(mean).sum(-1).exp()
