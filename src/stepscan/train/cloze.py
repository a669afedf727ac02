"""Hide some items of each sequence and ask for them: the Cloze task of BERT4Rec.

Source: Sun et al. 2019, arXiv:1904.06690, section 3.6. Each item is hidden with the probability
`share`; or, in the part `last` of the sequences, the last item alone, as it will be asked for
(the paper adds such sequences to its training data). A hidden item reads as symbol 0 and is the
target of its own step, and its time is hidden too, as it is of what comes next. An item that is not
known is never hidden: there would be no answer.
"""

import torch
from torch.nn import functional as F

from stepscan.data.base import Batch
from stepscan.models.heads import Cloze

HIDDEN = 0  # the symbol of an item that is not known


def cloze(batch: Batch, head: Cloze) -> Batch:
    """The batch with items hidden and asked for, by torch's random numbers.

    A sequence is what lies between two resets; what its targets were does not matter.
    """
    assert batch.tokens is not None
    items, resets = batch.tokens[..., 0], batch.resets
    hidden = torch.rand(items.shape, device=items.device) < head.share
    if head.last:
        ends = F.pad(resets[:, 1:], (0, 1), value=True)
        only = torch.rand(items.shape[0], 1, device=items.device) < head.last
        hidden = torch.where(only, ends, hidden)
    hidden &= items != HIDDEN
    target = torch.where(hidden, items, -1)
    tokens = batch.tokens.clone()
    tokens[..., 0] = items.masked_fill(hidden, HIDDEN)
    reals = batch.reals
    if reals is not None:
        reals = reals.masked_fill(hidden[..., None], 0)
    return batch._replace(tokens=tokens, reals=reals, targets=batch.targets | {"token": target})
