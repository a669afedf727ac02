"""Nearest codes of a codebook, and codes that follow what they stand for.

    nearest_t = argmin_c |x_t - code_c|^2              for codes of one length: the largest x . code
    code_c    = decay code_c + (1 - decay) mean of the x nearest to it             online k-means

Codes are one set per head, [H C K]. Sources: vector quantisation with moving averages as in VQ-VAE
(arXiv:1711.00937), spherical k-means as in the Routing Transformer (arXiv:2003.05997).
"""

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
