"""The classical methods of events: each against what its paper says of it, or plain counting."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from stepscan.apps.baselines.alergia import Alergia
from stepscan.apps.baselines.grams import BackOff, Grams, SuffixTree
from stepscan.apps.baselines.heuristics_net import HeuristicsNet
from stepscan.apps.baselines.hmm import HiddenMarkov
from stepscan.apps.baselines.symbols import (
    MarkovChain,
    MostFrequent,
    SameAgain,
    log_likelihood,
    walk,
)
from stepscan.apps.events.classical import METHODS, cases_of, continued, judge
from stepscan.apps.events.metrics import similarity
from stepscan.apps.events.questions import suffix_questions
from stepscan.apps.kinds import domain_of

# A process of five states; the last symbol ends a case. Symbol 0 is never used, as in the library.
STEP = ({1: 1, 2: 2}, {3: 3, 1: 0}, {2: 3, 3: 4}, {1: 0, 4: 4}, {2: 1, 5: None})
CHANCE = (
    {1: 0.7, 2: 0.3},
    {3: 0.6, 1: 0.4},
    {2: 0.5, 3: 0.5},
    {1: 0.35, 4: 0.65},
    {2: 0.45, 5: 0.55},
)
VOCAB, LAST = 6, 5


def draw(count, seed):
    rng = np.random.default_rng(seed)
    cases = []
    for _ in range(count):
        state, case = 0, []
        while state is not None:
            symbols, chance = zip(*CHANCE[state].items(), strict=True)
            symbol = int(rng.choice(symbols, p=chance))
            case.append(symbol)
            state = STEP[state][symbol]
        cases.append(np.array(case))
    return cases


EVERY = pytest.mark.parametrize("make", METHODS, ids=lambda m: m.name)


@pytest.fixture(scope="module")
def cases():
    return draw(400, seed=0)


@EVERY
def test_probabilities_are_probabilities_everywhere(make, cases):
    model = make()
    model.fit(cases, VOCAB)
    odd = [np.array([0, 5, 4, 4, 4, 2]), np.array([3]), np.array([1, 2, 3, 1, 1, 1, 1])]
    for which, count, state in walk(model, [*cases[:50], *odd]):
        chance = model.chances(state)
        assert chance.shape == (len(which), VOCAB)
        np.testing.assert_allclose(chance.sum(1), 1)
        assert (chance > 0).all()
        assert model.places(state).shape == count.shape
    assert model.chances(model.start(1)).sum() == pytest.approx(1)


@EVERY
def test_rows_do_not_see_each_other(make, cases):
    model = make()
    model.fit(cases, VOCAB)
    together = {}
    for which, count, state in walk(model, cases[:30]):
        for row, key in enumerate(zip(which.tolist(), count.tolist(), strict=True)):
            together[key] = model.chances(state)[row]
    assert len(together) == sum(map(len, cases[:30]))
    for i in (0, 7, 29):
        state = model.start(1)
        for n, symbol in enumerate(cases[i], 1):
            state = model.read(state, np.array([symbol]))
            np.testing.assert_allclose(model.chances(state)[0], together[i, n], atol=1e-12)


def test_the_chain_counts_pairs(cases):
    chain, most = MarkovChain(), MostFrequent()
    chain.fit(cases, VOCAB)
    most.fit(cases, VOCAB)
    pairs = Counter((int(a), int(b)) for case in cases for a, b in itertools.pairwise(case))
    after = Counter(b for (_, b), n in pairs.items() for _ in range(n))
    assert most.chances(most.start(1))[0].argmax() == after.most_common(1)[0][0]
    wanted = [after[b] / len(cases) for b in range(VOCAB)]
    chance = most.chances(most.start(1))[0]
    np.testing.assert_allclose(chance, np.array(wanted) / sum(wanted), atol=1e-3)
    for a in range(1, LAST):
        state = chain.read(chain.start(1), np.array([a]))
        total = sum(n for (x, _), n in pairs.items() if x == a)
        wanted = [pairs[a, b] / total for b in range(VOCAB)]
        np.testing.assert_allclose(chain.chances(state)[0], wanted, atol=0.01)


def test_the_last_event_again_as_often_as_it_was(cases):
    model = SameAgain()
    model.fit(cases, VOCAB)
    pairs = [(a, b) for case in cases for a, b in itertools.pairwise(case.tolist())]
    share = sum(a == b for a, b in pairs) / len(pairs)
    after = Counter(b for _, b in pairs)
    for last in range(1, LAST):
        chance = model.chances(model.read(model.start(1), np.array([last])))[0]
        assert chance[last] == pytest.approx(share, abs=0.01)
        others = [b for b in range(1, LAST) if b != last and after[b]]
        told = [chance[b] / chance[others[0]] for b in others]
        assert told == pytest.approx([after[b] / after[others[0]] for b in others], rel=0.02)


def test_who_keeps_to_something_of_their_own_is_foretold_by_repetition_alone():
    """Cases that stay with one symbol, half of them with one that training hardly shows."""
    train = [np.full(9, 1 + i % 3) for i in range(30)]
    test = [np.full(9, 4) for _ in range(5)]
    right = {}
    for model in (SameAgain(), MarkovChain()):
        model.fit(train, 5)
        last = model.read(model.start(5), np.array([case[0] for case in test]))
        right[model.name] = (model.chances(last).argmax(1) == 4).mean()
    assert right == {"same again": 1.0, "Markov chain": 0.0}


def test_grams_are_counted_within_cases(cases):
    grams = Grams(cases, VOCAB, 4)
    strings = [(VOCAB, *case.tolist()) for case in cases]
    for k in (1, 2, 3):
        wanted = Counter(s[i : i + k + 1] for s in strings for i in range(len(s) - k))
        for context in {gram[:-1] for gram in wanted} | {(4, 4, 2)[:k], (1, 3, 5)[:k]}:
            ids = np.zeros(1, np.int64)
            for n, symbol in enumerate(context, 1):
                ids = grams.find(n, ids, np.array([symbol]))
            counts = grams.table(k, ids)[0]
            assert counts.tolist() == [wanted[(*context, s)] for s in range(VOCAB)]


def test_back_off_is_the_equation_of_witten_and_bell(cases):
    model = BackOff(3)
    model.fit(cases, VOCAB)
    strings = [(VOCAB, *case.tolist()) for case in cases]

    def chance(symbol, context):
        grams = Counter(
            s[i] for s in strings for i in range(len(context), len(s))
            if s[i - len(context) : i] == context and s[i] != VOCAB
        )  # fmt: skip
        if not context:
            total = sum(grams.values())
            return (grams[symbol] + 0.5 / VOCAB) / (total + 0.5)
        shorter = chance(symbol, context[1:])
        if not grams:
            return shorter
        kinds = len(grams)
        return (grams[symbol] + kinds * shorter) / (sum(grams.values()) + kinds)

    state = model.start(1)
    read = (VOCAB,)
    for symbol in (1, 3, 4, 4, 0, 2):
        wanted = [chance(s, read[-2:]) for s in range(VOCAB)]
        np.testing.assert_allclose(model.chances(state)[0], wanted, rtol=1e-9)
        state = model.read(state, np.array([symbol]))
        read = (*read, symbol)


def test_the_suffix_tree_keeps_what_tells_more():
    """x 3 x 4 x 3 x 4: after 3 comes what came before it, after 4 nothing is told by the past."""
    rng = np.random.default_rng(0)
    cases = [
        np.array([s for x in rng.choice([1, 2], 6).tolist() for s in (x, 3, x, 4)])
        for _ in range(200)
    ]
    model, plain = SuffixTree(3), MarkovChain()
    model.fit(cases, 5)
    plain.fit(cases, 5)
    for before in (1, 2):
        state = model.start(1)
        for symbol in (4, before, 3):
            state = model.read(state, np.array([symbol]))
        assert model.chances(state)[0].argmax() == before
        assert model.chances(state)[0, before] > 0.95
    for k in (2, 3):  # a tree: the suffix of a node is a node
        assert model.kept[k - 2][model.grams.shorter[k - 1][model.kept[k - 1]]].all()
    grams = model.grams
    four = grams.find(1, np.zeros(1, np.int64), np.array([4]))
    x_four = grams.find(2, grams.find(1, np.zeros(1, np.int64), np.array([1])), np.array([4]))
    assert model.kept[0][four].all()
    assert not model.kept[1][x_four].any(), "1 before 4 tells nothing"
    assert log_likelihood(model, cases[:20]) > log_likelihood(plain, cases[:20])


def test_em_never_lowers_the_likelihood(cases):
    model = HiddenMarkov(5, passes=25, tolerance=0)
    model.fit(cases, VOCAB)
    gains = np.diff(model.log_likelihoods)
    assert len(gains) == 24
    assert (gains > -1e-6 * abs(model.log_likelihoods[0])).all()
    assert model.log_likelihoods[-1] > model.log_likelihoods[0] + 100


def test_the_likelihood_of_the_hmm_is_the_sum_over_all_paths():
    model = HiddenMarkov(3, passes=1)
    model.fit([np.array([1, 2, 1, 2]), np.array([2, 2])], 3)
    first, move, show = model.first, model.move, model.show
    model.passes = 1
    strings = [np.array([1, 2, 1]), np.array([2])]
    total = 0.0
    for s in strings:
        paths = itertools.product(range(3), repeat=len(s))
        chances = [
            first[p[0]] * show[p[0], s[0]]
            * math.prod(move[a, b] * show[b, x] for a, b, x in zip(p, p[1:], s[1:], strict=False))
            for p in paths
        ]  # fmt: skip
        total += math.log(sum(chances))
    padded = np.array([[1, 2, 1], [2, 0, 0]])
    assert model._pass(padded, [2, 1, 1]) == pytest.approx(total)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_alergia_recovers_the_automaton(seed):
    cases = draw(3000, seed)
    model = Alergia()
    model.fit(cases, VOCAB)
    assert len(model.step) == 5
    place = {0: 0}
    for state in range(5):  # walk both side by side
        for symbol, to in STEP[state].items():
            assert symbol in model.step[place[state]]
            if to is not None:
                mine = model.step[place[state]][symbol]
                assert place.setdefault(to, mine) == mine
    for state in range(5):
        counts = model.counts[place[state]]
        total = sum(counts.values())
        assert set(counts) == set(CHANCE[state])
        for symbol, chance in CHANCE[state].items():
            error = 4 * math.sqrt(chance * (1 - chance) / total)
            assert abs(counts[symbol] / total - chance) < error
    loose = Alergia(alpha=1.9)  # a bound that believes every difference keeps far more states
    loose.fit(cases[:150], VOCAB)
    assert len(loose.step) > 5
    with pytest.raises(ValueError, match="alpha between 0 and 2, got 0"):
        Alergia(alpha=0)


def workflow(count, seed):
    """1, then 2 and 3 in any order, then 4, then 5 or 6, then 7."""
    rng = np.random.default_rng(seed)
    return [
        np.array([1, *rng.permutation([2, 3]), 4, int(rng.choice([5, 6])), 7]) for _ in range(count)
    ]


def test_the_miner_finds_concurrency_and_choice():
    model = HeuristicsNet()
    cases = workflow(400, 0)
    model.fit(cases, 8)
    assert model.fitness == 1.0
    assert set(model.out[1]) == {frozenset({2}), frozenset({3})}
    assert model.out[4] == [frozenset({5, 6})]
    assert set(model.into[4]) == {frozenset({2}), frozenset({3})}
    assert model.into[7] == [frozenset({5, 6})]
    state = model.start(1)
    for symbol, allowed in ((1, {2, 3}), (2, {3}), (3, {4}), (4, {5, 6}), (6, {7})):
        state = model.read(state, np.array([symbol]))
        assert set(model.enabled(int(state[0, 0]))) == allowed
    chain = MarkovChain()
    chain.fit(cases, 8)
    test = workflow(50, 1)
    assert log_likelihood(model, test) > log_likelihood(chain, test)
    broken = HeuristicsNet()
    broken.fit(cases, 8)
    odd = [np.array([7, 4, 1])]
    broken._weigh(odd)
    assert broken.fitness < 1


@EVERY
def test_a_method_is_judged_as_a_plain_loop_would(make, small):
    domain, _ = small("events")
    schema = domain.schema
    train, test = (cases_of(domain.dataset.parts[k]) for k in ("train", "test"))
    asked = suffix_questions(domain.dataset.parts["test"], schema)
    shown = {"gap error": 2.0, "remaining error": 3.0}
    (judged,) = judge(train, test, asked, schema, shown, [make])
    model = make()
    model.fit(train.strings, schema.tokens[0])
    right, brier, count = 0, 0.0, 0
    gaps = {"gap": {}, "remaining": {}}
    for part in (train, test):
        errors = {key: [] for key in gaps}
        for i, string in enumerate(part.strings):
            state = model.start(1)
            for n in range(int(part.lengths[i])):
                state = model.read(state, string[n : n + 1])
                place, at = int(model.places(state)[0]), int(part.begins[i]) + n
                for key, found in gaps.items():
                    value = part.times[key][at]
                    if math.isnan(value):
                        continue
                    if part is train:
                        found.setdefault(place, []).append(value)
                        found.setdefault("all", []).append(value)
                    else:
                        own = found.get(place, ())
                        guess = np.median(own if len(own) >= 5 else found["all"])
                        errors[key].append(abs(guess - value))
                if part is test and n + 1 < len(string):
                    chance = model.chances(state)[0]
                    right += chance[1:].argmax() + 1 == string[n + 1]
                    brier += ((chance - np.eye(len(chance))[string[n + 1]]) ** 2).sum()
                    count += 1
    assert judged.scores["accuracy"] == pytest.approx(right / count)
    assert judged.scores["Brier"] == pytest.approx(brier / count)
    for key, scale in (("gap", 2), ("remaining", 3)):
        wanted = scale * np.mean(errors[key])
        assert judged.scores[f"{key} error"] == pytest.approx(wanted, rel=1e-5)
    said = continued(model, asked.histories, schema)
    assert said == continued(model, asked.histories, schema)
    assert all(0 < s < schema.end for way in said for s in way)
    wanted = np.mean([similarity(a, b) for a, b in zip(said, asked.real, strict=True)])
    assert judged.scores["suffix similarity"] == pytest.approx(wanted)
    assert judged.events == int(train.lengths.sum())
    assert judged.seconds >= 0


def test_ways_are_drawn_by_the_probabilities(small):
    domain, _ = small("events")
    schema = domain.schema
    model = MarkovChain()
    model.fit(cases_of(domain.dataset.parts["train"]).strings, schema.tokens[0])
    history, count = np.array([1]), 2000
    ways = continued(model, [history] * count, schema, samples=1)
    first = Counter(way[0] if way else schema.end for way in ways)
    chance = model.chances(model.read(model.start(1), history))[0]
    chance[0] = 0
    for symbol, p in enumerate(chance / chance.sum()):
        assert abs(first[symbol] / count - p) < 4 * math.sqrt(p * (1 - p) / count) + 1e-9


def test_all_methods_stand_in_the_table(small):
    domain, _ = small("events")
    rows = dict(domain.baselines(most=60))
    assert list(rows) == [m.name for m in METHODS]
    for scores in rows.values():
        assert list(scores) == [m.name for m in domain.metrics]
        assert all(math.isfinite(v) for v in scores.values())


def test_slow_methods_are_fitted_to_whole_cases(small, monkeypatch):
    domain, _ = small("events")
    monkeypatch.setattr(Alergia, "most", 50)
    rows = list(domain.baselines())
    assert len(rows) == len(METHODS)
    one = next(j for j in domain.judged if j.name == "ALERGIA")
    assert 20 < one.events < 120
    assert any(row[1] == one.events for row in domain.examples({})[2]["rows"])
    assert domain_of(domain.dataset).judged == []
