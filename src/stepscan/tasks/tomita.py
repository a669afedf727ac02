"""Tomita's seven regular languages over {0, 1}: whether what was read so far is in the language.

read   ^ 1 0 1 1 0      language 2, (10)*
ask      0 1 0 0 0      after every symbol

Even strings are rarely in most of the languages, so a string is a walk through the language's
automaton that steps off for good with a probability of its own: 0, 1/64, 1/16 or 1/4 where it can.
1: 1*; 2: (10)*; 3: no odd run of 1 with an odd run of 0 right after it; 4: no 000; 5: even numbers
of 0 and of 1; 6: #0 - #1 divisible by 3; 7: 0*1*0*1*.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from stepscan.tasks.running import Running


class Language(NamedTuple):
    """A complete deterministic automaton: it starts in state 0."""

    accept: tuple[bool, ...]
    """For each state."""
    step: tuple[tuple[int, int], ...]
    """For each state, the next one for each symbol."""

    def dead(self) -> list[bool]:
        """The states that no accepted string goes through."""
        alive = [*self.accept]
        for _ in alive:
            alive = [a or any(alive[n] for n in self.step[s]) for s, a in enumerate(alive)]
        return [not a for a in alive]


LANGUAGES: Mapping[int, Language] = MappingProxyType(
    {
        1: Language((True, False), ((1, 0), (1, 1))),
        2: Language((True, False, False), ((2, 1), (0, 2), (2, 2))),
        3: Language((True, True, False, True, False), ((0, 1), (2, 0), (3, 4), (2, 1), (4, 4))),
        4: Language((True, True, True, False), ((1, 0), (2, 0), (3, 0), (3, 3))),
        5: Language((True, False, False, False), ((1, 2), (0, 3), (3, 0), (2, 1))),
        6: Language((True, False, False), ((1, 2), (2, 0), (0, 1))),
        7: Language((True, True, True, True, False), ((0, 1), (2, 1), (2, 3), (4, 3), (4, 4))),
    }
)
"""The automata, by Tomita's number."""

OFF = (0.0, 1 / 64, 1 / 16, 1 / 4)
"""Probabilities, per row, of stepping where nothing is accepted any more."""


def member(number: int, word: Sequence[int]) -> bool:
    """Whether a string is in the language, by its definition rather than its automaton."""
    text = "".join(map(str, word))
    if number == 3:
        runs = re.findall("0+|1+", text)
        return not any(a[0] == "1" and len(a) % 2 and len(b) % 2 for a, b in pairwise(runs))
    zeros, ones = text.count("0"), text.count("1")
    if number == 5:
        return zeros % 2 == 0 and ones % 2 == 0
    if number == 6:
        return (zeros - ones) % 3 == 0
    pattern = {1: "1*", 2: "(10)*", 4: "(?!.*000).*", 7: "0*1*0*1*"}[number]
    return re.fullmatch(pattern, text) is not None


@dataclass(frozen=True, kw_only=True)
class Tomita(Running):
    """Config of the membership tasks of Tomita's languages."""

    name: ClassVar[str] = "tomita"
    ability: ClassVar[str] = "state tracking"
    source: ClassVar[str] = "Tomita 1982, Dynamic construction of finite automata"

    number: int = 6
    """Which language, 1 to 7."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        super().__post_init__()
        if self.number not in LANGUAGES:
            raise ValueError(f"tomita: want a number from 1 to 7, got {self.number}")

    @property
    def symbols(self) -> int:
        """Two symbols."""
        return 2

    @property
    def answers(self) -> int:
        """Outside or inside."""
        return 2

    @property
    def chance(self) -> float:
        """The likelier answer at each place, from the distribution over the automaton's states.

        Languages 2 and 5 have no strings of odd length: chance is 0.75 and above there.
        """
        one = self._probabilities()  # [rows' kinds, states] of symbol 1
        language, step = LANGUAGES[self.number], torch.tensor(LANGUAGES[self.number].step)
        accept = torch.tensor(language.accept).double()
        at = torch.zeros_like(one)
        at[:, 0] = 1 / len(OFF)
        total = 0.0
        for _ in range(self.length):
            moved = torch.zeros_like(at)
            moved.index_add_(1, step[:, 0], at * (1 - one)).index_add_(1, step[:, 1], at * one)
            at = moved
            inside = (at @ accept).sum().item()
            total += max(inside, 1 - inside)
        return total / self.length

    def _probabilities(self) -> Tensor:
        """Of symbol 1, for each kind of row and each state."""
        language = LANGUAGES[self.number]
        dead = language.dead()
        one = torch.full((len(OFF), len(dead)), 0.5, dtype=torch.float64)
        for state, (by_0, by_1) in enumerate(language.step):
            if dead[by_0] != dead[by_1]:
                off = torch.tensor(OFF, dtype=torch.float64)
                one[:, state] = off if dead[by_1] else 1 - off
        return one

    def words(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Walks through the automaton."""
        language, probability = LANGUAGES[self.number], self._probabilities()
        step, accept = torch.tensor(language.step), torch.tensor(language.accept)
        kind = torch.randint(len(OFF), (n,), generator=rng)
        number = torch.rand(self.length, n, generator=rng, dtype=torch.float64)
        state, word, inside = torch.zeros_like(kind), [], []
        for u in number:
            word.append((u < probability[kind, state]).long())
            state = step[state, word[-1]]
            inside.append(accept[state].long())
        return torch.stack(word, 1), torch.stack(inside, 1)

    def read(self, word: Sequence[int]) -> list[int]:
        """The definition of the language, for every prefix."""
        return [int(member(self.number, word[: t + 1])) for t in range(len(word))]
