"""In-context language learning: strings of an unknown language; which symbol may come next?

read   / a c b a / a b a c / a c     every example has a random automaton of its own, and all of its
ask    . . . . . a b . . . a c b     strings start in the same state

Asked is wherever a string has begun like an earlier one: what came then is right, and so is all
else that the automaton allows (`Batch.truth`). `ngram_reference` is the exact learner of n-grams.
Training has the languages with an even number of strings of two symbols, the test the others.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.tasks.base import Batch, Task


@dataclass(frozen=True, kw_only=True)
class InContextLanguage(Task):
    """Config of the in-context language task."""

    name: ClassVar[str] = "in_context_language"
    ability: ClassVar[str] = "in context"
    source: ClassVar[str] = "Akyürek et al. 2024, arXiv:2401.12973"

    strings: int = 8
    """Strings per example; the sequence has strings * (length_of_string + 1) tokens."""
    length_of_string: int = 8
    """Symbols of a string."""
    states: int = 6
    """States of an automaton."""
    symbols: int = 8
    """Symbols; the start of a string comes after them."""
    edges: int = 4
    """At most so many symbols leave a state; how many is drawn for each, all equally likely."""
    unseen: bool = False
    """Draw from the other half of the automata, which training never sees."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 2 <= self.edges < self.symbols or self.strings < 2:
            raise ValueError(
                f"in_context_language: want 2 <= edges < symbols and at least 2 strings, got {self}"
            )
        if min(self.states, self.length_of_string) < 1:
            raise ValueError(f"in_context_language: want states and length at least 1, got {self}")

    def longer(self, factor: int) -> "InContextLanguage":
        """More strings."""
        return replace(self, strings=self.strings * factor)

    def held_out(self) -> "InContextLanguage":
        """Automata that never come up in training."""
        return replace(self, unseen=True)

    @property
    def vocab(self) -> int:
        """The symbols and the start of a string."""
        return self.symbols + 1

    @property
    def answers(self) -> int:
        """Only symbols are asked for."""
        return self.symbols

    @property
    def chance(self) -> float:
        """The mean share of symbols that leave a state."""
        return (1 + self.edges) / 2 / self.symbols

    def automata(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Chances of each symbol in each state [n states symbols], and where it leads to."""
        shape = (n, self.states, self.symbols)

        def fresh() -> tuple[Tensor, Tensor]:
            edges = torch.randint(1, self.edges + 1, (*shape[:-1], 1), generator=rng)
            leaves = torch.rand(shape, generator=rng).argsort(-1) < edges
            return leaves / edges, torch.randint(self.states, shape, generator=rng)

        p, to = fresh()
        while (wrong := self.is_unseen(p, to) != self.unseen).any():
            p, to = (
                torch.where(wrong[:, None, None], new, old)
                for new, old in zip(fresh(), (p, to), strict=True)
            )
        return p, to

    @staticmethod
    def is_unseen(p: Float[Tensor, "B S V"], to: Int[Tensor, "B S V"]) -> Bool[Tensor, "B"]:
        """Whether a language is kept for the test: those with an odd number of strings of two."""
        second = (p > 0).sum(-1).gather(1, to[:, 0])  # symbols that may follow each first symbol
        return (second * (p[:, 0] > 0)).sum(1) % 2 == 1

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        return self.draw_with_automata(n, rng)[0]

    def draw_with_automata(self, n: int, rng: torch.Generator) -> tuple[Batch, Tensor, Tensor]:
        """Draw `n` examples; also the `automata` they come from."""
        p, to = self.automata(n, rng)
        row = torch.arange(n)[:, None]
        state = torch.zeros(n, self.strings, dtype=torch.long)
        said, truth = [], []
        keen = torch.rand(n, self.strings, self.length_of_string, self.symbols, generator=rng)
        for t in range(self.length_of_string):
            truth.append(p[row, state])
            symbol = (truth[-1] * keen[:, :, t]).argmax(-1)  # all that may come are as likely
            state = to[row, state, symbol]
            said.append(symbol)
        symbols = torch.stack(said, 2)  # [n strings length]
        mark = torch.full((n, self.strings, 1), self.symbols)
        input = torch.cat([mark, symbols], 2)
        target = torch.cat([symbols, torch.zeros_like(mark)], 2)  # no end of a string is asked for
        nothing = torch.zeros(n, self.strings, 1, self.symbols)
        likely = torch.cat([torch.stack(truth, 2), nothing], 2)
        asked = torch.cat([_begun_before(symbols), torch.zeros_like(mark, dtype=torch.bool)], 2)
        batch = Batch(input.flatten(1), target.flatten(1), asked.flatten(1), likely.flatten(1, 2))
        return batch, p, to

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Remember every beginning with what came after it."""
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            after: dict[tuple[int, ...], int] = {}
            begun: tuple[int, ...] = ()
            for t, token in enumerate(row):
                if token == self.symbols:
                    begun = ()
                else:
                    after[begun] = token
                    begun = (*begun, token)
                out[t] = after.get(begun, 0)
        return answer


def _begun_before(symbols: Int[Tensor, "B N L"]) -> Bool[Tensor, "B N L"]:
    """Whether what a string has said before each of its symbols began an earlier string too."""
    same = symbols[:, :, None] == symbols[:, None]  # [B N N L]
    start = torch.ones_like(same[..., :1])
    alike = torch.cat([start, same[..., :-1]], -1).cumprod(-1).bool()
    earlier = torch.ones(same.shape[1:3], dtype=torch.bool).tril(-1)
    return (alike & earlier[..., None]).any(2)


def ngram_reference(
    input: Int[Tensor, "B T"], symbols: int, *, order: int
) -> Float[Tensor, "B T V"]:
    """What followed the last `order` - 1 tokens so far, counted; fewer where they are new.

    Args:
        input: tokens; those at or above `symbols` are context, and never predicted.
        symbols: how many symbols V are predicted.
        order: length of the n-grams, their last symbol included.
    """
    B, T = input.shape
    follows = torch.zeros(B, T, symbols)
    is_symbol = (input < symbols)[:, 1:, None]
    follows[:, :-1] = F.one_hot(input.clamp(max=symbols - 1), symbols)[:, 1:] * is_symbol
    alike = torch.ones(T, T, dtype=torch.bool).tril(-1).expand(B, T, T)
    found = torch.full((B, T, symbols), 1 / symbols)
    for back in range(order):
        counts = alike.float() @ follows
        total = counts.sum(-1, keepdim=True)
        found = torch.where(total > 0, counts / total.clamp(min=1), found)
        shifted = F.pad(input, (back, 0), value=-1)[:, :T]
        alike = alike & (shifted[:, :, None] == shifted[:, None])
    return found
