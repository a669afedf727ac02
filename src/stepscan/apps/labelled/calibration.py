"""Temperature scaling: probabilities that are as often right as they say.

    p = softmax(z / T),   T > 0 chosen to minimise the log loss of the validation part

Source: Guo et al. 2017, arXiv:1706.04599. Classes keep their order, so accuracy does not change.
Deviation: where every one of few validation sequences is right, the best T is 0 and every
probability 1. So targets are those of N + 1 sequences of which one is of another class: N / (N + 1)
for the class of a sequence, the rest shared by the others; the idea is that of Platt 1999 (section
2.2, two classes). With large N it is the published rule.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.models import SequenceModel
from stepscan.models.heads import Logits

LOWEST, HIGHEST = 0.05, 20.0


def temperature(logits: Float[Tensor, "N K"], label: Int[Tensor, " N"]) -> float:
    """The T for these validation logits, by golden sections: the loss has one minimum in log T."""
    n, classes = logits.shape
    other = 1 / (n + 1) / max(1, classes - 1)
    target = torch.full((n, classes), other, dtype=torch.float64)
    target[torch.arange(n), label] = n / (n + 1)
    z = logits.double()

    def cost(log_t: float) -> float:
        return float(-(target * (z / math.exp(log_t)).log_softmax(-1)).sum())

    low, high = math.log(LOWEST), math.log(HIGHEST)
    section = (math.sqrt(5) - 1) / 2
    a, b = high - section * (high - low), low + section * (high - low)
    at_a, at_b = cost(a), cost(b)
    for _ in range(40):
        if at_a < at_b:
            high, b, at_b = b, a, at_a
            a = high - section * (high - low)
            at_a = cost(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + section * (high - low)
            at_b = cost(b)
    return math.exp((low + high) / 2)


@torch.no_grad()
def cool(model: SequenceModel, t: float) -> None:
    """Divide the logits of a model by T, in its weights: whoever runs it needs to know nothing."""
    head = model.head
    assert isinstance(head, Logits)
    assert head.soft_cap is None
    for parameter in head.map.parameters():
        parameter.div_(t)
