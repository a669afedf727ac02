"""What the tasks of recall, selectivity and in-context learning promise of their examples."""

import itertools
from collections import Counter

import pytest
import torch

from stepscan.tasks.in_context_language import InContextLanguage, ngram_reference
from stepscan.tasks.needle import Needle
from stepscan.tasks.passages import KINDS, Passages
from stepscan.tasks.rebinding import Rebinding
from stepscan.tasks.rule_grammar import SETTINGS, RuleGrammar
from stepscan.tasks.set_disjointness import SetDisjointness


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("setting", SETTINGS)
def test_what_is_no_gap_is_legal_and_no_gap_is(setting):
    """Each next legal token is the one that was to come, and the rest are as many as asked for."""
    for task in SETTINGS[setting]:
        batch = task.draw(64, rng())
        legal = torch.cat([batch.truth > 0, torch.zeros_like(batch.truth)], -1)  # noise never is
        follows = legal[:, :-1].gather(-1, batch.input[:, 1:, None])[..., 0] > 0
        assert torch.equal(batch.input[:, 1:][follows], batch.target[:, :-1][follows])
        stays = batch.truth[:, 1:] == batch.truth[:, :-1]
        assert stays.all(-1)[~follows].all()
        assert abs((~follows).double().mean().item() - task.gap) < 0.03
        if task.gaps == "illegal":
            assert batch.input.max() < task.symbols


def test_harder_rules_leave_a_larger_bayes_error():
    errors = [RuleGrammar(branching=b).bayes_error for b in (1, 2, 4, 8)]
    assert errors == sorted(set(errors))
    task = RuleGrammar(branching=4, gap=0.0, length=256)
    batch = task.draw(256, rng())
    wrong = (task.solve(batch.input) != batch.target)[:, 64:].double().mean().item()
    assert abs(wrong - task.bayes_error) < 0.02


def test_the_last_symbol_alone_does_not_tell_what_may_follow():
    task = RuleGrammar(gap=0.0)
    batch = task.draw(256, rng())
    said, legal = batch.input.flatten().tolist(), (batch.truth > 0).flatten(0, 1).tolist()
    ways = {(symbol, tuple(may)) for symbol, may in zip(said, legal, strict=True)}
    assert max(Counter(symbol for symbol, _ in ways).values()) == task.sharing


def accepted(string, p, to):
    state = 0
    for symbol in string:
        if p[state][symbol] == 0:
            return False
        state = to[state][symbol]
    return True


def test_every_string_is_accepted_by_its_automaton():
    task = InContextLanguage()
    batch, p, to = task.draw_with_automata(50, rng())
    foreign = 0
    for i, (row, *automaton) in enumerate(zip(batch.input, p.tolist(), to.tolist(), strict=True)):
        strings = row.view(task.strings, -1)[:, 1:].tolist()
        assert all(accepted(string, *automaton) for string in strings)
        foreign += accepted(strings[0], p[i - 1].tolist(), to[i - 1].tolist())
    assert foreign < 5


def test_no_language_of_the_test_is_in_training():
    two = list(itertools.product(range(8), repeat=2))

    def languages(task):
        _, p, to = task.draw_with_automata(200, rng())
        for automaton in zip(p.tolist(), to.tolist(), strict=True):
            yield frozenset(string for string in two if accepted(string, *automaton))

    task = InContextLanguage()
    seen, unseen = set(languages(task)), set(languages(task.held_out()))
    assert len(seen) > 150
    assert len(unseen) > 150
    assert not seen & unseen


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_ngram_reference_counts(order):
    task = InContextLanguage(strings=4)
    input = task.draw(3, rng()).input
    found = ngram_reference(input, task.symbols, order=order)
    for row, said in zip(input.tolist(), found, strict=True):
        for t in range(len(row)):
            for back in range(min(order - 1, t + 1), -1, -1):
                context = row[t + 1 - back : t + 1]
                seen = Counter(
                    row[s + 1]
                    for s in range(back - 1 if back else 0, t)
                    if row[s + 1 - back : s + 1] == context and row[s + 1] < task.symbols
                )
                if seen:
                    break
            total = sum(seen.values())
            want = [seen[v] / total if total else 1 / task.symbols for v in range(task.symbols)]
            torch.testing.assert_close(said[t], torch.tensor(want))


def test_every_key_is_bound_as_often_as_it_says():
    task = Rebinding()
    for row in task.draw(20, rng()).input.tolist():
        told = row[: 2 * task.bound * task.times : 2]
        assert set(Counter(told).values()) == {task.times}
        assert sorted(row[2 * len(told) :]) == sorted(set(told))


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (0.5, 46), (1.0, 91)])
def test_the_needle_lies_at_its_depth(depth, place):
    task = Needle(depth=depth)
    assert ((task.draw(5, rng()).input == task.vocab - 2).nonzero()[:, 1] == place).all()


@pytest.mark.parametrize("first", ["large", "small"])
def test_sets_come_in_the_order_asked_for_and_share_at_most_one(first):
    task = SetDisjointness(first=first)
    batch = task.draw(200, rng())
    for row, answer in zip(batch.input.tolist(), batch.target[:, -1].tolist(), strict=True):
        bar = row.index(task.elements)
        assert bar == (task.large if first == "large" else task.small)
        both = set(row[:bar]) & set(row[bar + 1 : -1])
        assert len(both) == 1 - answer


@pytest.mark.plain
@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (RuleGrammar, {"gaps": "none"}, "want gaps noise or illegal"),
        (RuleGrammar, {"branching": 16}, "branching < symbols"),
        (SetDisjointness, {"first": "both"}, "want first large or small"),
        (SetDisjointness, {"large": 400}, "together at most `elements`"),
        (Needle, {"depth": 2.0}, "want depth from 0 to 1"),
        (Rebinding, {"bound": 100}, "want 1 <= bound <= keys"),
        (InContextLanguage, {"edges": 8}, "want 2 <= edges < symbols"),
    ],
)
def test_settings_that_cannot_be_drawn(task, options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [64, 128, 256])
def test_passages_fill_their_length_and_are_answered_from_their_spans_alone(kind, length):
    task = Passages(kind=kind, length=length)
    batch, spans = task.draw_with_spans(200, rng())
    assert batch.input.shape[1] == length
    assert (batch.input == task.vocab - 1).sum(1).max() < task.passage
    assert task.score(task.solve(batch.input), batch) == 1
    question = torch.zeros_like(spans)
    question[:, -3:] = True
    filler = task.vocab - 1
    only = torch.where(spans | question, batch.input, filler)
    without = torch.where(spans, filler, batch.input)
    assert task.score(task.solve(only), batch) == 1
    assert task.score(task.solve(without), batch) < task.chance + 3 * 0.25 / 200**0.5
    share = spans.double().mean().item()
    wanted = {"single": 1, "multiple": 2, "global": task.passages}[kind.split()[-1]]
    assert abs(share - wanted * task.passage / length) < 1e-9
