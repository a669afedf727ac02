"""The rest of a case: event after event, each read by the model as if it had come.

Two ways. Beams keep the B likeliest continuations; the likeliest of all is often a poor guess, the
empty one, or for B = 1 one that runs in circles, since every single step is likely. Drawing takes
each activity as often as the model expects it; of some continuations drawn so, the one most like
the others is the guess that is right to the largest part, in the mean: the decision of least Bayes
risk (Kumar and Byrne 2004) for the similarity that suffixes are judged by. The way that takes the
likeliest step each time stands for election too.

The time of an event is the median of the gap, and the attributes of the last event stay as they
are. A suffix ends with the end of the case, or after so many events.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan import state as states
from stepscan.apps.events.metrics import by_likeness
from stepscan.apps.events.mixture import median
from stepscan.apps.ranking import without
from stepscan.data.base import Packed
from stepscan.data.batches import gather
from stepscan.data.events import EventSchema
from stepscan.models import Inputs, SequenceModel
from stepscan.models.heads import EventOutput
from stepscan.train.carry import newest_slots

ROWS = 256  # continuations side by side
SAMPLES = 16  # continuations drawn for one guess


class Rows(NamedTuple):
    """Histories read to their last event, side by side."""

    state: Any
    said: EventOutput
    """After the last event, [B 1 ...]."""
    inputs: Inputs
    """Of the last event, [B 1 ...]."""


class Found(NamedTuple):
    """One suffix."""

    symbols: list[int]
    """Activities; the end of the case is not among them."""
    times: list[float]
    """Of each of them, in units after the last event of the history."""
    log_chance: float
    """Of the whole suffix, with its end if it has one."""
    ended: bool


@torch.no_grad()
def read_histories(
    model: SequenceModel,
    packed: Packed,
    begins: Int[Tensor, " B"],
    ends: Int[Tensor, " B"],
    *,
    reach: int | None = None,
) -> Rows:
    """Read from each place of `begins` up to the place of `ends`, and keep where that leads.

    Rows are put flush to the right: what is to the left of a history is empty, and the reset at
    its first event makes the model forget it. `reach` bounds what attention keeps, see `Domain`.
    """
    lengths = ends - begins + 1
    longest = int(lengths.max())
    at = torch.arange(longest)[None] + (ends - longest + 1)[:, None]
    at = at.masked_fill(at < begins[:, None], -1)
    state: Any = None
    said: Any = None
    for piece in at.split(reach or 1024, 1):
        batch = gather(packed, piece)
        said, state = model(Inputs(batch.tokens, batch.reals), state, batch.resets)
        if reach is not None:
            state = newest_slots(state, reach)
    last = gather(packed, at[:, -1:])
    return Rows(state, last_step(said), Inputs(last.tokens, last.reals))


def suffixes(
    model: SequenceModel,
    schema: EventSchema,
    packed: Packed,
    begins: Int[Tensor, " B"],
    ends: Int[Tensor, " B"],
    *,
    beams: int | None = None,
    samples: int = SAMPLES,
    most: int | None = None,
    reach: int | None = None,
) -> list[list[Found]]:
    """`continue_cases` or, without beams, `draw_cases` of any number of histories."""
    order = (ends - begins).argsort(stable=True)  # those of like length side by side
    found: dict[int, list[Found]] = {}
    rng = torch.Generator().manual_seed(0)
    many = schema.suffix if most is None else most
    for rows in order.split(max(1, ROWS // (beams or samples))):
        read = read_histories(model, packed, begins[rows], ends[rows], reach=reach)
        if beams is None:
            said = draw_cases(model, schema, read, most=many, samples=samples, rng=rng, reach=reach)
        else:
            said = continue_cases(model, schema, read, most=many, beams=beams, reach=reach)
        found |= dict(zip(rows.tolist(), said, strict=True))
    return [found[i] for i in range(len(order))]


def last_step(said: EventOutput) -> EventOutput:
    """What was said after the last event, [B 1 ...]."""
    return pytree.tree_map_only(Tensor, lambda x: x[:, -1:], said)


@torch.no_grad()
def continue_cases(
    model: SequenceModel,
    schema: EventSchema,
    rows: Rows,
    *,
    most: int,
    beams: int = 1,
    reach: int | None = None,
) -> list[list[Found]]:
    """For each history, up to `beams` suffixes of at most `most` events, the likeliest first.

    Every beam is one row of the batch. Suffixes are compared by the probability of the whole, so
    that of two the longer one has to earn its length.
    """
    count, vocab = len(rows.said.logits), rows.said.logits.shape[-1]
    said, at = _side_by_side(rows, beams)
    score = torch.full((count, beams), -torch.inf, dtype=torch.float64)
    score[:, 0] = 0  # the beams of a case are the same at first: only one may go on
    symbols = torch.zeros(count, beams, 0, dtype=torch.long)
    clock = torch.zeros(count, beams, 0, dtype=torch.float64)
    done: list[list[Found]] = [[] for _ in range(count)]
    for _ in range(most):
        chance = without(said.logits[:, 0]).double().log_softmax(-1).view(count, beams, vocab)
        together = (score[..., None] + chance).flatten(1)
        # The end leaves its place: so many more are looked at that `beams` can still go on.
        best = together.topk(min(2 * beams, together.shape[1]))
        gap = median(said.gap[:, 0]).double().view(count, beams)
        parent = best.indices // vocab
        symbol = best.indices % vocab
        chosen = torch.zeros(count, beams, dtype=torch.long)
        for i in range(count):
            kept: list[int] = []
            for j in range(best.indices.shape[1]):
                value = float(best.values[i, j])
                if value == -torch.inf or len(kept) == beams:
                    break
                if int(symbol[i, j]) == schema.end:
                    before = int(parent[i, j])
                    if j < beams:
                        done[i].append(_found(symbols[i, before], clock[i, before], value, True))
                    continue
                kept.append(j)
            row = kept + [j for j in range(best.indices.shape[1]) if j not in kept]
            chosen[i] = torch.tensor((row * beams)[:beams])
            score[i] = -torch.inf
            score[i, : len(kept)] = best.values[i, kept]
            if len(done[i]) >= beams and score[i].max() <= min(f.log_chance for f in done[i]):
                score[i] = -torch.inf  # nothing that goes on can still be better
        if not score.isfinite().any():
            break
        parent, symbol = parent.gather(1, chosen), symbol.gather(1, chosen)
        passed = gap.gather(1, parent)
        before = (
            torch.zeros_like(passed) if not clock.shape[2] else clock[..., -1].gather(1, parent)
        )
        pick = parent[..., None].expand(-1, -1, symbols.shape[2])
        symbols = torch.cat([symbols.gather(1, pick), symbol[..., None]], 2)
        clock = torch.cat([clock.gather(1, pick), (before + passed)[..., None]], 2)
        rows_of = (parent + beams * torch.arange(count)[:, None]).flatten()
        at = _At(states.select(at.state, rows_of), at.tokens[rows_of], at.reals[rows_of])
        said, at = _read_one(model, schema, at, symbol.flatten(), passed.flatten(), reach)
    for i in range(count):
        for j in score[i].isfinite().nonzero()[:, 0].tolist():
            done[i].append(_found(symbols[i, j], clock[i, j], float(score[i, j]), False))
        done[i] = sorted(done[i], key=lambda found: -found.log_chance)[:beams]
    return done


@torch.no_grad()
def draw_cases(
    model: SequenceModel,
    schema: EventSchema,
    rows: Rows,
    *,
    most: int,
    samples: int,
    rng: torch.Generator,
    reach: int | None = None,
) -> list[list[Found]]:
    """For each history, `samples` suffixes drawn from the model, and that of the likeliest steps;
    each different one once, the most like all that were drawn first.
    """
    likeliest = continue_cases(model, schema, rows, most=most, reach=reach)
    said, at = _side_by_side(rows, samples)
    count = len(at.tokens)
    symbols: list[list[int]] = [[] for _ in range(count)]
    clock: list[list[float]] = [[] for _ in range(count)]
    score = torch.zeros(count, dtype=torch.float64)
    ended = torch.zeros(count, dtype=torch.bool)
    going = torch.arange(count)
    for _ in range(most):
        chance = without(said.logits[:, 0]).double().log_softmax(-1)
        if chance.isnan().any():
            return [[] for _ in range(count // samples)]  # the model is broken
        symbol = torch.multinomial(chance.exp(), 1, generator=rng)[:, 0]
        score[going] += chance.gather(1, symbol[:, None])[:, 0]
        left = symbol != schema.end
        ended[going[~left]] = True
        going, symbol = going[left], symbol[left]
        if not len(going):
            break
        gap = median(said.gap[left, 0]).double()
        for row, which, passed in zip(going.tolist(), symbol.tolist(), gap.tolist(), strict=True):
            symbols[row].append(which)
            clock[row].append((clock[row][-1] if clock[row] else 0.0) + passed)
        kept = left.nonzero()[:, 0]
        at = _At(states.select(at.state, kept), at.tokens[kept], at.reals[kept])
        said, at = _read_one(model, schema, at, symbol, gap, reach)
    drawn = [
        Found(*of_one)
        for of_one in zip(symbols, clock, score.tolist(), ended.tolist(), strict=True)
    ]
    pieces = [drawn[i : i + samples] for i in range(0, count, samples)]
    return [_ordered(piece, also) for piece, also in zip(pieces, likeliest, strict=True)]


def _ordered(drawn: list[Found], also: list[Found]) -> list[Found]:
    different = {tuple(one.symbols): one for one in (*also, *reversed(drawn))}
    ways, others = ([tuple(one.symbols) for one in some] for some in (drawn, also))
    return [different[way] for way in by_likeness(ways, others)]


class _At(NamedTuple):
    """Where some continuations stand: the state after their last event, and its inputs."""

    state: Any
    tokens: Int[Tensor, "B F"]
    reals: Float[Tensor, "B C"]


def _side_by_side(rows: Rows, copies: int) -> tuple[EventOutput, _At]:
    assert rows.inputs.tokens is not None
    assert rows.inputs.reals is not None
    spread = torch.arange(len(rows.inputs.tokens)).repeat_interleave(copies)
    said = states.select(rows.said, spread)
    tokens, reals = rows.inputs.tokens[spread, 0], rows.inputs.reals[spread, 0]
    return said, _At(states.select(rows.state, spread), tokens, reals)


def _read_one(
    model: SequenceModel,
    schema: EventSchema,
    at: _At,
    symbols: Int[Tensor, " B"],
    passed: Float[Tensor, " B"],
    reach: int | None,
) -> tuple[EventOutput, _At]:
    """One event more in every row."""
    tokens = at.tokens.clone()
    tokens[:, 0] = symbols.clamp(max=len(schema.activities))  # never the end
    reals = schema.after(at.reals, passed.to(at.reals.dtype))
    said, state = model(Inputs(tokens[:, None], reals[:, None]), at.state)
    return said, _At(state if reach is None else newest_slots(state, reach), tokens, reals)


def _found(symbols: Tensor, clock: Float[Tensor, " N"], score: float, ended: bool) -> Found:
    return Found(symbols.tolist(), clock.tolist(), score, ended)
