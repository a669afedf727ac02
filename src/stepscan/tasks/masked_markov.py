"""A hidden Markov model, some of its steps masked: what comes next, by Bayes' rule?

read   a b . c . . a b      states of a Markov chain, now and then misread; "." is not shown
ask    b c c a a b b a      the state after each step

The chain is fixed (`chain` is its seed), so that the answer is what the forward algorithm makes of
all that was read: `Batch.truth` is exact, and an answer is right if no other is likelier. The state
itself is drawn: training on it leads to the truth, and cross entropy above the truth's own entropy
is what a model has not inferred. Kinds of chains, as in arXiv:2510.25674: cyclic (stay or go on
around a ring), linear (stay or go to a neighbour on a line), full (anywhere); the numbers are ours.
"""

from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepscan.names import lookup
from stepscan.tasks.base import Batch, Task

KINDS = ("cyclic", "linear", "full")
COUNTED = 4096
"""Examples on which chance is counted."""
SAME = 1e-6
"""Probabilities that differ by less are the same."""


class Chain(NamedTuple):
    """A hidden Markov model; the first state is any."""

    walk: Float[Tensor, "S S"]
    """How likely each state follows each (rows sum to 1)."""
    shows: Float[Tensor, "S V"]
    """How likely each token is read in each state, the mask last."""


@dataclass(frozen=True, kw_only=True)
class MaskedMarkov(Task):
    """Config of the masked Markov task."""

    name: ClassVar[str] = "masked_markov"
    ability: ClassVar[str] = "state tracking"
    source: ClassVar[str] = "Baum and Petrie 1966; kinds of chains after arXiv:2510.25674"

    length: int = 64
    """Steps."""
    states: int = 8
    """States of the chain."""
    kind: str = "cyclic"
    """Which states follow which: one of KINDS."""
    masked: float = 0.3
    """Share of the steps that are not shown."""
    misread: float = 0.2
    """Share of the shown steps that show another state, any."""
    chain: int = 0
    """Which chain: the seed it is drawn with."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        lookup(dict.fromkeys(KINDS), self.kind, kind="kind of masked_markov")
        if self.length < 1 or self.states < 3:
            raise ValueError(
                "masked_markov: want length at least 1 and 3 states or more, got "
                f"{self.length} and {self.states}"
            )
        if not (0 <= self.masked < 1 and 0 <= self.misread < 1):
            raise ValueError(
                "masked_markov: want masked and misread from 0 to below 1, got "
                f"{self.masked} and {self.misread}"
            )

    @property
    def vocab(self) -> int:
        """The states, then the mask."""
        return self.states + 1

    @property
    def answers(self) -> int:
        """The states."""
        return self.states

    @property
    def model(self) -> Chain:
        """The hidden Markov model, in float64."""
        walk = _walk(self.kind, self.states, self.chain)
        wrong = self.misread / (self.states - 1)
        shown = torch.full_like(walk, wrong).fill_diagonal_(1 - self.misread)
        hidden = torch.full_like(walk[:, :1], self.masked)
        return Chain(walk, torch.cat([(1 - self.masked) * shown, hidden], 1))

    @property
    def chance(self) -> float:
        """The state that is likeliest most often at each step, counted."""
        return _chance(self)

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples, and filter them."""
        walk, shows = self.model
        upto, read_upto = (p.cumsum(1)[:, :-1].contiguous() for p in (walk, shows))
        chosen = torch.rand(2, n, self.length, generator=rng, dtype=torch.float64)
        state = torch.randint(self.states, (n,), generator=rng)
        coming = torch.full((n, self.states), 1 / self.states, dtype=torch.float64)
        read, target, truth = [], [], []
        for t in range(self.length):
            read.append((read_upto[state] < chosen[0, :, t, None]).sum(1))
            state = (upto[state] < chosen[1, :, t, None]).sum(1)
            target.append(state)
            belief = coming * shows.T[read[-1]]
            coming = (belief / belief.sum(1, keepdim=True)) @ walk
            truth.append(coming)
        input = torch.stack(read, 1)
        asked = torch.ones_like(input, dtype=torch.bool)
        return Batch(input, torch.stack(target, 1), asked, torch.stack(truth, 1).float())

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """The forward algorithm, step by step."""
        walk, shows = (p.tolist() for p in self.model)
        answer, every = torch.zeros_like(input), range(self.states)
        for row, out in zip(input.tolist(), answer, strict=True):
            weight = [1.0] * self.states
            for t, token in enumerate(row):
                seen = [w * shows[s][token] for s, w in enumerate(weight)]
                weight = [sum(seen[s] * walk[s][to] for s in every) for to in every]
                most = max(weight)
                weight = [w / most for w in weight]
                out[t] = weight.index(1.0)
        return answer

    def score(self, answer: Tensor, batch: Batch) -> float:
        """Share of answers than which none is likelier."""
        right = _likeliest(batch).gather(-1, answer[..., None]).squeeze(-1)
        return right[batch.asked].double().mean().item()


def _likeliest(batch: Batch) -> Bool[Tensor, "B T S"]:
    """Which states are as likely as any; all, while nothing was shown of some chains."""
    assert batch.truth is not None
    return batch.truth >= batch.truth.amax(-1, keepdim=True) - SAME


@cache
def _chance(task: MaskedMarkov) -> float:
    right = _likeliest(task.draw(COUNTED, torch.Generator().manual_seed(2**31)))
    return right.double().mean(0).amax(-1).mean().item()


@cache
def _walk(kind: str, states: int, seed: int) -> Float[Tensor, "S S"]:
    """Random weights of where it may go; staying is likely on the ring and on the line."""
    rng = torch.Generator().manual_seed(seed)
    if kind == "full":  # a few likely ways out of each state, and as many into it
        walk = (2 * torch.randn(states, states, generator=rng, dtype=torch.float64)).exp()
        for _ in range(200):  # Sinkhorn's: with sums of columns alike, all states are as frequent
            walk = walk / walk.sum(0)
            walk = walk / walk.sum(1, keepdim=True)
        return walk
    weight = 0.5 + torch.rand(states, states, generator=rng, dtype=torch.float64)
    here = torch.arange(states)
    apart = here - here[:, None]
    near = (apart.abs() <= 1) if kind == "linear" else (apart % states <= 1)
    weight = weight * near * torch.where(apart == 0, 2.0, 1.0)
    return weight / weight.sum(1, keepdim=True)
