"""The two branches of UniRec, beside the loss of the next item.

    sequence   S an even sequence, h_t what the model says after its step t.
               S' = its items of the tail and its last two; h'_t what it says after the same step
               of S', whose intervals are no longer even.
               w |R h'_t - h_t|^2,      w = |sin(pi/2 (p + (M - 3) / L))|
    item       g_i = G [e_i; sum_j a_ij e_j],   a_i. = softmax_j(e_i . e_j) over drawn neighbours j
               head:  sin(pi/2 (p + 1 - v_i)) |g_i - e_i|^2
               tail:  sin(pi/2 p)             |g_i - e_i|^2    with G held as it is

Squares are means over the D channels, sums are means over what is compared. p goes from 0 to 1 over
the first `ramp` steps, M counts the items of S', L is the window, v_i from 0 to 1 how uneven an
item's own intervals are. What is easy comes first: long S', items taken regularly; what is learned
from items of the head (G, their neighbours) is handed to those of the tail, of which S' is made, so
that each branch helps the other.

Source: Liu, Wang and Feng 2024, arXiv:2406.18470 (UniRec); weights, schedules and the score of
neighbours (`apps/interactions/neighbours.py`) as in the authors' code, github.com/Linxi000/UniRec,
since the paper's text was not at hand: where the two differ is not known to us. There p is of
epochs, (epoch - 100) / 120 for most, and the sequence branch counts twice from epoch 100 on. There
h and h' are compared place by place from the end; here each step with itself. There head items and
even users come from cuts at 30 and 40 %; here items are of the head by how often they are taken.
"""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepscan.data.base import Batch
from stepscan.models.heads.enhanced_item import EnhancedItem, EnhancedLogits
from stepscan.models.inputs import Inputs
from stepscan.models.model import SequenceModel
from stepscan.train.augment import within
from stepscan.train.objectives import Loss, Sum, loss

NEWEST = 2
"""Items at the end of a sequence that are never left out."""
FEWEST = 3
"""What is counted from in the weight of a thinned sequence, as published."""


class Tables(NamedTuple):
    """What is known of the items and users of a training part; row 0 is no item."""

    counts: Int[Tensor, " V"]
    """How often each item is taken."""
    unevenness: Float[Tensor, " V"]
    """Of the times between takings of an item, from 0 (even) to 1."""
    neighbours: Int[Tensor, "V K"]
    """The items nearest to each; itself where there are not so many."""
    variances: Float[Tensor, " U"]
    """Of the intervals of each user; NaN where there are fewer than two."""


class Thinned(NamedTuple):
    """Some steps of each row, moved to its beginning."""

    at: Int[Tensor, "B S"]
    """Where they were; -1 behind the last."""
    inputs: Inputs
    resets: Bool[Tensor, "B S"]


class Enhance:
    """An objective of `Trainer`: `(model, batch, state) -> (loss, state)`."""

    def __init__(self, tables: Tables, head: EnhancedItem) -> None:
        self.tables = tables
        self.head_items = frequent(tables.counts, head.frequent)
        self.limit = even_limit(tables.variances, head.even)

    def __call__(self, model: SequenceModel, batch: Batch, state: Any) -> tuple[Loss, Any]:
        """One batch of histories."""
        head, config = model.head, model.config.head
        assert isinstance(head, EnhancedLogits)
        assert isinstance(config, EnhancedItem)
        outputs, after = model(Inputs(batch.tokens, batch.reals), state, batch.resets)
        found = loss(config, outputs, batch.targets)
        if not head.training:
            return found, after
        progress = min(1.0, int(head.steps) / config.ramp)
        head.steps += 1
        parts = {"sequence": (config.sequence, self.sequences(model, batch, outputs.x, progress))}
        near, far = self.items(model, batch, progress)
        parts |= {"item": (config.item, near), "tail": (config.tail, far)}
        mean, sums = found.mean, dict(found.sums)
        for name, (weight, part) in parts.items():
            mean = mean + weight * part.total / part.count.clamp_min(1)
            sums[name] = Sum(part.total.detach(), part.count)
        return Loss(mean, sums), after

    def sequences(
        self, model: SequenceModel, batch: Batch, said: Float[Tensor, "B T D"], progress: float
    ) -> Sum:
        """The sequence branch; `said` is what the head read of the whole sequences."""
        assert batch.tokens is not None
        items = batch.tokens[..., 0]
        even = is_even(batch, self.limit)
        kept = even & (~self.head_items.to(items.device)[items] | newest(batch.resets, NEWEST))
        if not kept.any() or not model.config.head.sequence:  # type: ignore[attr-defined]
            return _nothing(said)
        some = thin(batch, kept)
        thinned, _ = model(some.inputs, None, some.resets)
        real = some.at >= 0
        whole = said.gather(1, some.at.clamp(min=0)[..., None].expand(-1, -1, said.shape[-1]))
        head = model.head
        assert isinstance(head, EnhancedLogits)
        square = (head.restore(thinned.x) - whole).square().mean(-1)
        _, length, _ = within(some.resets.cpu())
        share = (length.to(said.device) - FEWEST) / batch.tokens.shape[1]
        weight = torch.sin(math.pi / 2 * (progress + share)).abs()
        return Sum((weight * square)[real].sum(), real.sum())

    def items(self, model: SequenceModel, batch: Batch, progress: float) -> tuple[Sum, Sum]:
        """The item branch, of items of the head and of the tail, over the items of the batch."""
        assert batch.tokens is not None
        head, config = model.head, model.config.head
        assert isinstance(head, EnhancedLogits)
        assert isinstance(config, EnhancedItem)
        table = model.embed.tables[0].weight
        assert isinstance(table, Tensor)
        here = batch.tokens[..., 0].unique()
        here = here[here > 0]
        if not len(here) or not (config.item or config.tail):
            return _nothing(table), _nothing(table)
        drawn = draw_neighbours(self.tables.neighbours, here.cpu(), config.neighbours)
        own, mixed = table[here], mix(table, here, drawn.to(here.device))
        often = self.head_items[here.cpu()].to(here.device)
        uneven = self.tables.unevenness[here.cpu()].to(table)
        weight = torch.sin(math.pi / 2 * (progress + 1 - uneven))
        near = (head.gather(mixed[often]) - own[often]).square().mean(-1) * weight[often]
        held = torch.nn.functional.linear(
            mixed[~often], head.gather.weight.detach(), head.gather.bias.detach()
        )
        far = (held - own[~often]).square().mean(-1) * math.sin(math.pi / 2 * progress)
        return Sum(near.sum(), often.sum()), Sum(far.sum(), (~often).sum())


def frequent(counts: Int[Tensor, " V"], share: float) -> Bool[Tensor, " V"]:
    """Which items are of the head: this share of them, those taken most; 0 is none."""
    size = round(share * (len(counts) - 1))
    found = torch.zeros(len(counts), dtype=torch.bool)
    found[counts[1:].argsort(descending=True, stable=True)[:size] + 1] = True
    return found


def even_limit(variances: Float[Tensor, " U"], share: float) -> float:
    """The variance up to which a sequence is even, so that this share of the users are."""
    known = variances[~variances.isnan()].double().sort().values
    size = round(share * len(known))
    return float(known[size - 1]) if size else -math.inf


def is_even(batch: Batch, limit: float) -> Bool[Tensor, "B T"]:
    """Whether each step belongs to an even sequence: by its intervals up to the end of it here."""
    uneven, resets = batch.targets["uneven"], batch.resets
    place, length, _ = within(resets.cpu())
    end = (torch.arange(resets.shape[1]) - place + length - 1).to(resets.device)
    return uneven.gather(1, end) <= limit


def newest(resets: Bool[Tensor, "B T"], count: int) -> Bool[Tensor, "B T"]:
    """Whether each step is among the last of its sequence."""
    place, length, _ = within(resets.cpu())
    return (length - place <= count).to(resets.device)


def thin(batch: Batch, kept: Bool[Tensor, "B T"]) -> Thinned:
    """The rows with these steps alone; with a clock, times since the step before add up."""
    assert batch.tokens is not None
    size = int(kept.sum(1).max())
    at = (~kept).to(torch.int8).argsort(dim=1, stable=True)[:, :size]
    real = kept.gather(1, at)
    _, _, which = within(batch.resets.cpu())
    own = which.to(at.device).gather(1, at)
    starts = torch.ones_like(real)
    starts[:, 1:] = own[:, 1:] != own[:, :-1]
    starts |= ~real
    tokens = batch.tokens.gather(1, at[..., None].expand(-1, -1, batch.tokens.shape[2]))
    reals = batch.reals
    if reals is not None:
        run = reals[..., -1].double().cumsum(1).gather(1, at)
        since = torch.where(starts, 0, run - run.roll(1, 1)).to(reals)
        reals = reals.gather(1, at[..., None].expand(-1, -1, reals.shape[2]))
        # Where no time is known, none is known of what came between.
        reals = torch.cat([reals[..., :-1], (since * reals[..., 0])[..., None]], -1)
        reals = reals.masked_fill(~real[..., None], 0)
    tokens = tokens.masked_fill(~real[..., None], 0)
    return Thinned(torch.where(real, at, -1), Inputs(tokens, reals), starts)


def draw_neighbours(
    neighbours: Int[Tensor, "V K"], items: Int[Tensor, " N"], count: int
) -> Int[Tensor, "N k"]:
    """Some of the neighbours of each item, by torch's random numbers."""
    known = neighbours[items]
    return known.gather(1, torch.rand(known.shape).argsort(1)[:, :count])


def mix(
    table: Float[Tensor, "V D"], items: Int[Tensor, " N"], neighbours: Int[Tensor, "N k"]
) -> Float[Tensor, "N D2"]:
    """[e_i; sum_j a_ij e_j] of these items and their neighbours."""
    own, others = table[items], table[neighbours]
    weights = torch.einsum("nd,nkd->nk", own, others).softmax(1)
    return torch.cat([own, torch.einsum("nk,nkd->nd", weights, others)], 1)


def _nothing(like: Tensor) -> Sum:
    return Sum(like.sum() * 0, torch.zeros((), dtype=torch.long, device=like.device))
