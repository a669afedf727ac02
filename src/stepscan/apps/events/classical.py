"""The classical methods on a data set of events: fitted, timed, and judged like a model.

What they say of times: the median among the training events in the same place of the method (the
same last activity, state of an automaton, node of a tree ...), overall where a place has few.
"""

from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from stepscan.apps.baselines.alergia import Alergia
from stepscan.apps.baselines.grams import BackOff, SuffixTree
from stepscan.apps.baselines.heuristics_net import HeuristicsNet
from stepscan.apps.baselines.hmm import HiddenMarkov
from stepscan.apps.baselines.symbols import (
    Ids,
    MarkovChain,
    MostFrequent,
    SameAgain,
    SymbolModel,
    walk,
)
from stepscan.apps.domain import Scores
from stepscan.apps.events.metrics import SUFFIX, Tally, by_likeness
from stepscan.apps.events.questions import Questions, cut
from stepscan.apps.events.suffix import SAMPLES
from stepscan.data.base import Packed
from stepscan.data.events import EventSchema

METHODS: tuple[type[SymbolModel], ...] = (
    MostFrequent,
    SameAgain,
    MarkovChain,
    BackOff,
    HiddenMarkov,
    Alergia,
    SuffixTree,
    HeuristicsNet,
)
"""One line a method."""
FEWEST = 5  # events in a place for it to have a median of its own
READ = 1000  # cases read side by side: of each, all probabilities are held


class Judged(NamedTuple):
    """A method, its figures and what it took."""

    name: str
    scores: Scores
    seconds: float
    """Of fitting."""
    events: int
    """That it was fitted to."""


class Cases(NamedTuple):
    """A part of the data as the methods read it."""

    strings: list[Ids]
    """The activities of each case; after them what is asked after the last, such as its end."""
    lengths: Ids
    """Events, without what is only asked for."""
    times: dict[str, NDArray[np.float64]]
    """For each event of the part, the time to the next one and to the last one of its case, in
    units; NaN where not asked."""
    begins: Ids
    """The place of the first event of each case in the part."""


def cases_of(packed: Packed) -> Cases:
    """Strings and times of a part."""
    assert packed.tokens is not None
    symbols = packed.tokens[:, 0].long().numpy()
    targets = packed.targets_at(torch.arange(len(packed)))
    begins, lengths = packed.begins.numpy(), packed.lengths.numpy()
    after = targets["token"].numpy()[begins + lengths - 1]
    strings = [
        np.append(symbols[b : b + n], s) if s >= 0 else symbols[b : b + n]
        for b, n, s in zip(begins.tolist(), lengths.tolist(), after.tolist(), strict=True)
    ]
    times = {key: targets[key].double().numpy() for key in ("gap", "remaining") if key in targets}
    return Cases(strings, lengths, times, begins)


def judge(
    train: Cases,
    test: Cases,
    questions: Questions,
    schema: EventSchema,
    shown: dict[str, float],
    methods: Sequence[type[SymbolModel]] = METHODS,
) -> Iterator[Judged]:
    """Every method: fit it on `train`, judge it on `test`.

    Args:
        train: What to learn from; what is slow learns from whole cases, evenly spread over it.
        test: What to predict.
        questions: What suffixes are asked for.
        schema: The symbols.
        shown: How many of the unit a unit of time is shown as, for each of the times by the name of
            its metric.
        methods: Those to judge.
    """
    for make in methods:
        model = make()
        begin = perf_counter()
        seen = _at_most(train, model.most)
        model.fit(seen.strings, schema.tokens[0])
        seconds = perf_counter() - begin
        typical = _typical_times(model, seen)
        tally = Tally(schema.tokens[0])
        for rows, seen_of, reached in walk(model, test.strings, READ):
            inside = seen_of <= test.lengths[rows]  # not after the end
            which, count, state = rows[inside], seen_of[inside], reached[inside]
            if not len(which):
                continue
            at = test.begins[which] + count - 1
            has_next = count < [len(test.strings[i]) for i in which]
            next_at = zip(which[has_next], count[has_next], strict=True)
            wanted = [test.strings[i][n] for i, n in next_at]
            chance = torch.from_numpy(model.chances(state[has_next])).clamp_min(1e-300)
            tally.next(chance.log(), torch.tensor(wanted, dtype=torch.long))
            places = model.places(state)
            for (key, real), (name, scale) in zip(test.times.items(), shown.items(), strict=True):
                error = np.abs(typical[key](places) - real[at])
                tally.times(name, scale * torch.from_numpy(error[~np.isnan(error)]))
        scores = tally.scores()
        if questions.real:
            said = continued(model, questions.histories, schema)
            scores[SUFFIX.name] = questions.similarity(cut(said, questions, schema))
        yield Judged(model.name, scores, seconds, int(seen.lengths.sum()))


def _at_most(cases: Cases, most: int | None) -> Cases:
    """Whole cases, evenly spread, with about so many events in all."""
    total = int(cases.lengths.sum())
    if most is None or total <= most:
        return cases
    count = max(1, len(cases.strings) * most // total)
    chosen = np.linspace(0, len(cases.strings) - 1, count).round().astype(np.int64)
    strings = [cases.strings[i] for i in chosen]
    return Cases(strings, cases.lengths[chosen], cases.times, cases.begins[chosen])


def _typical_times(
    model: SymbolModel, train: Cases
) -> dict[str, Callable[[Ids], NDArray[np.float64]]]:
    """For each time, its median by place."""
    at: list[Ids] = []
    places: list[Ids] = []
    for which, count, state in walk(model, train.strings):
        inside = count <= train.lengths[which]
        at.append((train.begins[which] + count - 1)[inside])
        places.append(model.places(state[inside]))
    where = np.concatenate(places)
    steps = np.concatenate(at)
    return {key: _medians(where, values[steps]) for key, values in train.times.items()}


def _medians(places: Ids, values: NDArray[np.float64]) -> Callable[[Ids], NDArray[np.float64]]:
    known = ~np.isnan(values)
    places, values = places[known], values[known]
    overall = float(np.median(values)) if len(values) else 1.0
    order = np.lexsort((values, places))
    places, values = places[order], values[order]
    keys, first, count = np.unique(places, return_index=True, return_counts=True)
    middle = (values[first + (count - 1) // 2] + values[first + count // 2]) / 2
    middle = np.where(count >= FEWEST, middle, overall)

    def look_up(asked: Ids) -> NDArray[np.float64]:
        if not len(keys):
            return np.full(len(asked), overall)
        at = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
        return np.where(keys[at] == asked, middle[at], overall)

    return look_up


def continued(
    model: SymbolModel, histories: list[Ids], schema: EventSchema, samples: int = SAMPLES
) -> list[list[int]]:
    """As a model of the library is asked, see `suffix`: drawn, and the one most like the others."""
    rng = np.random.default_rng(0)
    ends: dict[int, NDArray[Any]] = {}
    for which, count, state in walk(model, histories, READ):
        for row in np.flatnonzero(count == [len(histories[i]) for i in which]):
            ends[int(which[row])] = state[row]
    state = np.stack([ends[i] for i in range(len(histories))])
    likeliest = _go_on(model, state, schema, None)
    ways = _go_on(model, np.repeat(state, samples, 0), schema, rng)
    pieces = [ways[i : i + samples] for i in range(0, len(ways), samples)]
    return [list(by_likeness(p, [w])[0]) for p, w in zip(pieces, likeliest, strict=True)]


def _go_on(
    model: SymbolModel,
    state: NDArray[Any],
    schema: EventSchema,
    rng: np.random.Generator | None,
) -> list[tuple[int, ...]]:
    """One way for each row: drawn, or without `rng` the likeliest step each time."""
    found: list[list[int]] = [[] for _ in state]
    going = np.arange(len(state))
    for _ in range(schema.suffix):
        chance = model.chances(state)
        chance[:, 0] = 0
        upto = chance.cumsum(1)
        if rng is None:
            symbols = chance.argmax(1)
        else:
            symbols = (upto < rng.random((len(upto), 1)) * upto[:, -1:]).sum(1)
        left = symbols != schema.end
        going, state, symbols = going[left], state[left], symbols[left]
        if not len(going):
            break
        for row, symbol in zip(going.tolist(), symbols.tolist(), strict=True):
            found[row].append(symbol)
        state = model.read(state, symbols)
    return list(map(tuple, found))
