"""Rule grammars with gaps: what may come next, whatever was said in between?

read   a c . e b . . c     a walk through a fixed automaton; "." is a gap: noise, or a symbol of
ask    c e e b c c c a     the grammar that the rules do not allow here

Several states share a symbol, so what may follow depends on the walk and not only on its last
symbol, and a gap of the grammar's own symbols is known by breaking the rules alone. Any symbol that
the rules allow is right (`Batch.truth`). `SETTINGS` has the four settings of the source: harder
rules, gaps of noise, gaps that break the rules, and more of them in the test than in training.
The rules here are drawn at random; the source's own grammars are others.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.tasks.base import Batch, Task

GAPS = ("noise", "illegal")


class Rules(NamedTuple):
    """The automaton; state s says symbol s % symbols."""

    following: Int[Tensor, "S R"]
    """The states that may follow, with different symbols."""
    share: Float[Tensor, "S R"]
    """How likely each is."""
    says: Float[Tensor, "S V"]
    """How likely each symbol is to follow."""


@dataclass(frozen=True, kw_only=True)
class RuleGrammar(Task):
    """Config of the rule grammar task."""

    name: ClassVar[str] = "rule_grammar"
    ability: ClassVar[str] = "selectivity"
    source: ClassVar[str] = "after SelectivBench, arXiv:2601.12598"

    length: int = 64
    """Tokens."""
    symbols: int = 16
    """Symbols of the grammar; as many symbols of noise come after them."""
    sharing: int = 2
    """States that share each symbol."""
    branching: int = 2
    """Symbols that may follow a state."""
    gap: float = 0.3
    """Share of the tokens that are gaps."""
    gaps: str = "illegal"
    """What a gap is: noise (symbols of its own) or illegal (of the grammar, against its rules)."""
    grammar: int = 0
    """Which rules: the seed they are drawn with."""

    def __post_init__(self) -> None:
        """Reject what cannot be drawn."""
        if not 1 <= self.branching < self.symbols or min(self.length, self.sharing) < 1:
            raise ValueError(
                "rule_grammar: want 1 <= branching < symbols, length and sharing at least 1, got "
                f"{self}"
            )
        if self.gaps not in GAPS or not 0 <= self.gap < 1:
            raise ValueError(
                f"rule_grammar: want gaps noise or illegal and 0 <= gap < 1, got {self.gaps!r} "
                f"and {self.gap}"
            )

    @property
    def vocab(self) -> int:
        """Symbols of the grammar, then those of noise."""
        return 2 * self.symbols

    @property
    def answers(self) -> int:
        """Symbols of the grammar."""
        return self.symbols

    @property
    def rules(self) -> Rules:
        """The automaton."""
        return _rules(self.symbols, self.sharing, self.branching, self.grammar)

    @property
    def chance(self) -> float:
        """The symbol that is allowed most often at each step, over all walks."""
        rules, best = self.rules, 0.0
        states = len(rules.following)
        walk = torch.zeros(states, states).scatter_(1, rules.following, rules.share)
        at = torch.zeros(states)
        at[: self.symbols] = 1 / self.symbols
        for _ in range(self.length):
            best += (at @ (rules.says > 0).float()).max().item() / self.length
            at = self.gap * at + (1 - self.gap) * (at @ walk)
        return best

    @property
    def bayes_error(self) -> float:
        """How often the likeliest next symbol does not come, for one who knows the state."""
        rules = self.rules
        states = len(rules.following)
        walk = torch.zeros(states, states).scatter_(1, rules.following, rules.share)
        at = torch.full((states,), 1 / states)
        for _ in range(500):  # half a step each: this settles also where the walk is periodic
            at = (at + at @ walk) / 2
        return 1 - (at @ rules.share.amax(1)).item()

    def draw(self, n: int, rng: torch.Generator) -> Batch:
        """Draw `n` examples."""
        rules, symbols = self.rules, self.symbols
        chosen = torch.rand(n, self.length, generator=rng)
        gap = torch.rand(n, self.length, generator=rng) < self.gap
        gap[:, 0] = False
        upto = rules.share.cumsum(1)[:, :-1].contiguous()

        def follow(state: Tensor, chosen: Tensor) -> Tensor:
            branch = (upto[state] < chosen[:, None]).sum(1, keepdim=True)
            return rules.following[state].gather(1, branch)[:, 0]

        state = torch.randint(symbols, (n,), generator=rng)
        coming = follow(state, chosen[:, 0])
        states, comings = [state], [coming]
        for t in range(1, self.length):
            state = torch.where(gap[:, t], state, coming)
            coming = torch.where(gap[:, t], coming, follow(state, chosen[:, t]))
            states.append(state)
            comings.append(coming)
        at, target = torch.stack(states, 1), torch.stack(comings, 1) % symbols
        truth = rules.says[at]
        noise = torch.randint(symbols, 2 * symbols, gap.shape, generator=rng)
        if self.gaps == "illegal":
            noise = torch.rand(truth.shape, generator=rng).masked_fill(truth > 0, -1.0).argmax(-1)
        input = torch.where(gap, noise, at % symbols)
        return Batch(input, target, torch.ones_like(gap), truth)

    def solve(self, input: Int[Tensor, "B T"]) -> Int[Tensor, "B T"]:
        """Walk along what is allowed, pass over the rest, and say the likeliest next symbol."""
        following, share = self.rules.following.tolist(), self.rules.share.tolist()
        answer = torch.zeros_like(input)
        for row, out in zip(input.tolist(), answer, strict=True):
            state = row[0]
            for t, token in enumerate(row):
                allowed = {s % self.symbols: s for s in following[state]}
                if t and token in allowed:
                    state = allowed[token]
                out[t] = following[state][share[state].index(max(share[state]))] % self.symbols
        return answer


@lru_cache
def _rules(symbols: int, sharing: int, branching: int, seed: int) -> Rules:
    """One circle through all states, so that each is reached, and random ways beside it."""
    rng = torch.Generator().manual_seed(seed)
    states = symbols * sharing
    circle = torch.randperm(states, generator=rng)
    ahead = torch.empty_like(circle)
    ahead[circle] = circle.roll(-1)
    own = torch.arange(states)[:, None]
    order = torch.rand(states, symbols, generator=rng)
    order.scatter_(1, ahead[:, None] % symbols, -1.0)  # the way ahead comes first
    said = order.argsort(1)[:, :branching]
    following = said + symbols * torch.randint(sharing, said.shape, generator=rng)
    following[:, 0] = ahead
    share = 0.5 + torch.rand(states, branching, generator=rng)
    share = share / share.sum(1, keepdim=True)
    says = torch.zeros(states, symbols)
    says[own, said] = share
    return Rules(following, share, says)


def _settings() -> Mapping[str, tuple[RuleGrammar, RuleGrammar]]:
    plain = RuleGrammar(gap=0.0)
    hard, noise, illegal = (
        replace(plain, sharing=3, branching=4),
        replace(plain, gap=0.3, gaps="noise"),
        replace(plain, gap=0.3),
    )
    few = replace(plain, gap=0.1)
    settings = {"complexity": (hard, hard), "noise": (noise, noise), "illegal": (illegal, illegal)}
    return MappingProxyType(settings | {"longer gaps": (few, replace(few, gap=0.5))})


SETTINGS = _settings()
"""What to train on and what to test on, by name."""
