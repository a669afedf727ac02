import random

import pytest
import torch
from tomita import TOMITA

from stepscan.analyze.automata import Automaton, difference, extract
from stepscan.tasks.tomita import member


@pytest.mark.parametrize("number", TOMITA)
def test_the_automata_are_those_of_the_languages(number):
    rng = random.Random(number)
    for _ in range(400):
        string = rng.choices([0, 1], [rng.random() + 0.05] * 1 + [1], k=rng.randrange(14))
        assert TOMITA[number].accepts(string) == member(number, string), string


def shuffled(automaton, rng):
    """The same language with more states, in another order."""
    n = len(automaton.accept)
    names = [0, *rng.sample(range(1, 2 * n), 2 * n - 1)]  # state s and its copy s + n
    accept, step = [False] * 2 * n, [()] * 2 * n
    for copy in range(2 * n):
        s = copy % n
        accept[names[copy]] = automaton.accept[s]
        step[names[copy]] = tuple(names[t + n * rng.randrange(2)] for t in automaton.step[s])
    return Automaton(tuple(accept), tuple(step))


@pytest.mark.parametrize("number", TOMITA)
def test_minimal_automata_of_a_language_are_equal(number):
    target = TOMITA[number].minimal()
    other = shuffled(TOMITA[number], random.Random(number))
    assert difference(other, target) is None
    assert other.minimal() == target
    for wrong in set(TOMITA) - {number}:
        string = difference(TOMITA[wrong], target)
        assert TOMITA[wrong].accepts(string) != target.accepts(string)


@pytest.mark.parametrize("number", TOMITA)
def test_extraction_reads_an_automaton_off_its_own_runs(number):
    target = TOMITA[number]
    symbols = torch.randint(2, (200, 16))
    states = torch.zeros(200, 17, dtype=torch.int64)
    for row in range(200):
        for t in range(16):
            states[row, t + 1] = target.step[states[row, t]][symbols[row, t]]
    accepted = torch.tensor(target.accept)[states]
    assert extract(symbols, states, accepted, alphabet=2) == target.minimal()


def test_what_no_one_read_is_rejected():
    zeros = torch.zeros(1, 2, dtype=torch.int64)
    found = extract(zeros, torch.tensor([[0, 1, 1]]), torch.ones(1, 3).bool(), alphabet=2)
    assert found.accepts([0, 0, 0])
    assert not found.accepts([0, 1, 0])


def test_a_start_that_is_not_one_is_an_error():
    zeros = torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="want 0 as the state"):
        extract(zeros, torch.tensor([[1, 1, 1]]), torch.ones(1, 3).bool(), alphabet=2)
