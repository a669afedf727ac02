"""The word problem of a finite group: the product of the elements read so far.

read   ^ a b c      elements, as permutations of a few things
ask      a  ba  cba      a first, then b, then c: the element that they come to

Over S3 and the dihedral groups it wants transitions that do not commute; over A5 and S5, which are
not solvable, it is complete for NC1, beyond every fixed depth of TC0 (Barrington 1989).
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.names import lookup
from stepscan.tasks.running import Running

Permutation = tuple[int, ...]


def _even(p: Permutation) -> bool:
    return sum(a > b for a, b in itertools.combinations(p, 2)) % 2 == 0


def _dihedral(n: int) -> tuple[Permutation, ...]:
    turns = [tuple((i + k) % n for i in range(n)) for k in range(n)]
    return (*turns, *(turn[::-1] for turn in turns))


GROUPS = {
    "S3": lambda: tuple(itertools.permutations(range(3))),
    "S4": lambda: tuple(itertools.permutations(range(4))),
    "S5": lambda: tuple(itertools.permutations(range(5))),
    "A4": lambda: tuple(filter(_even, itertools.permutations(range(4)))),
    "A5": lambda: tuple(filter(_even, itertools.permutations(range(5)))),
    "D4": lambda: _dihedral(4),
    "D5": lambda: _dihedral(5),
    "D8": lambda: _dihedral(8),
}
"""Elements of each group by the token that stands for them; Dn has 2 n."""


@cache
def elements(group: str) -> tuple[Permutation, ...]:
    """The permutations that make up a group."""
    return lookup(GROUPS, group, kind="group")()


@cache
def table(group: str) -> Int[Tensor, "G G"]:
    """`table[a, b]`: the element that comes of a, then b."""
    members = elements(group)
    number = {p: i for i, p in enumerate(members)}
    return torch.tensor([[number[tuple(b[i] for i in a)] for b in members] for a in members])


@dataclass(frozen=True, kw_only=True)
class WordProblem(Running):
    """Config of the word problem."""

    name: ClassVar[str] = "word_problem"
    ability: ClassVar[str] = "state tracking"
    source: ClassVar[str] = "Merrill et al. 2024, arXiv:2404.08819"

    group: str = "S3"
    """One of S3, S4, S5, A4, A5, D4, D5, D8."""
    length: int = 24
    """Elements per example."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        super().__post_init__()
        elements(self.group)

    @property
    def symbols(self) -> int:
        """The elements."""
        return len(elements(self.group))

    @property
    def answers(self) -> int:
        """The elements."""
        return self.symbols

    @property
    def chance(self) -> float:
        """Each is as likely, at any place."""
        return 1 / self.symbols

    def words(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Uniform elements; products by the table."""
        word = torch.randint(self.symbols, (n, self.length), generator=rng)
        products, by = [word[:, 0]], table(self.group)
        for x in word.unbind(1)[1:]:
            products.append(by[products[-1], x])
        return word, torch.stack(products, 1)

    def read(self, word: Sequence[int]) -> list[int]:
        """Things in a row, moved by one permutation after the other."""
        members = elements(self.group)
        things, answer = list(range(len(members[0]))), []
        for x in word:
            things = [members[x][thing] for thing in things]
            answer.append(members.index(tuple(things)))
        return answer
