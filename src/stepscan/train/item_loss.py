"""What a recommender descends: the next item against all the others, or against a few drawn ones.

    softmax   -log softmax(s)_i                                     over all V items
    binary    -log sigmoid(s_i) - sum_j log(1 - sigmoid(s_j))       SASRec, arXiv:1808.09781
    sampled   -s_i + log(exp s_i + (V - 2) / n  sum_j exp s_j)      an estimate of softmax

i is the wanted item and j = 1 ... n are negatives drawn evenly from the others but symbol 0, the
item that is not known. SASRec draws them from what the user never took; here those that the same
row of the batch asks for are left out, since a row is all of the user that a batch holds. What is
left out is not drawn again: its term is dropped from the binary sum. `sampled` leaves out the
wanted item alone, so that with many negatives it tends to the softmax over all items but symbol 0
(Bengio and Senecal 2008, importance sampling with an even proposal).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.models.heads import Cloze, ItemScores, NextItem
from stepscan.ops.projection import project


def item_loss(
    head: NextItem | Cloze,
    said: ItemScores | Float[Tensor, "B T V"],
    target: Int[Tensor, "B T"],
) -> Float[Tensor, " N"]:
    """The loss of each of the N items that are asked for (target >= 0).

    A model in evaluation mode says logits, and is judged by the softmax whatever it descends. The
    negatives come from torch's random numbers.
    """
    asked = target >= 0
    wanted = target[asked]
    if isinstance(said, Tensor):
        return F.cross_entropy(_wide(said)[asked], wanted, reduction="none")
    kind = head.loss if isinstance(head, NextItem) else "softmax"
    x = said.x[asked]
    if kind == "softmax":
        logits = project(x, said.weight, said.bias)
        return F.cross_entropy(_wide(logits), wanted, reduction="none")
    assert isinstance(head, NextItem)
    drawn = torch.randint(1, head.vocab, (len(wanted), head.negatives), device=x.device)
    own = _scores(x, said, wanted[:, None])[:, 0]
    others = _scores(x, said, drawn)
    if kind == "binary":
        taken = _taken(target, asked, drawn)
        return F.softplus(-own) + F.softplus(others).masked_fill(taken, 0).sum(1)
    same = drawn == wanted[:, None]
    share = math.log(max(head.vocab - 2, 1)) - (~same).sum(1).clamp_min(1).log()
    others = others.masked_fill(same, -torch.inf) + share[:, None]
    return torch.cat([own[:, None], others], 1).logsumexp(1) - own


def _scores(x: Tensor, said: ItemScores, items: Int[Tensor, "N n"]) -> Float[Tensor, "N n"]:
    scores = torch.einsum("nd,nkd->nk", x, said.weight[items])
    return _wide(scores if said.bias is None else scores + said.bias[items])


def _taken(
    target: Int[Tensor, "B T"], asked: Bool[Tensor, "B T"], drawn: Int[Tensor, "N n"]
) -> Bool[Tensor, "N n"]:
    """Which of the drawn items their own row asks for somewhere."""
    rows = asked.nonzero()[:, 0]
    return torch.cat(
        [(part[:, :, None] == target[row][:, None]).any(2) for part, row in _parts(drawn, rows)]
    )


def _parts(drawn: Tensor, rows: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Some at a time: a comparison with every target of a row is large."""
    return list(zip(drawn.split(1024), rows.split(1024), strict=True))


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
