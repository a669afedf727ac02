"""The forget gates of HGRN: sigmoids above a floor that rises with the layer.

    alpha = gamma + (1 - gamma) sigmoid(logit)          gamma = sigmoid(bound), one per channel

So higher layers remember longer. The papers keep one table of floors for the whole model,
gamma_l = sum of softmax over the layers below l; here each layer learns its own, from the same
initial value l / L, and the lowest has none. Sources: HGRN (arXiv:2311.04823), HGRN2
(arXiv:2404.07904).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F


def lower_bound(width: int, layer: int, layers: int) -> nn.Parameter | None:
    """A bound with its initial value; none in the lowest layer."""
    if not 0 <= layer < layers:
        raise ValueError(f"want 0 <= layer < layers, got {layer} of {layers}")
    if layer == 0:
        return None
    low = layer / layers
    return nn.Parameter(torch.full((width,), math.log(low / (1 - low))))


def log_forget(
    logit: Float[Tensor, "B T D"], bound: Float[Tensor, " D"] | None
) -> Float[Tensor, "B T D"]:
    """log alpha, float32 or wider."""
    g = F.logsigmoid(logit.to(torch.promote_types(logit.dtype, torch.float32)))
    if bound is None:
        return g
    bound = bound.to(g.dtype)
    return torch.logaddexp(F.logsigmoid(bound), F.logsigmoid(-bound) + g)
