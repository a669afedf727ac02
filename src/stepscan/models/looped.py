"""Depth by repetition: one stack of blocks run several times, with the same weights.

    x_{n+1} = x_n + g_n * (F(x_n) - x_n)     g_n = sigmoid(W [x_n; F(x_n)] + b), or 1    n < loops

F is the whole stack. b starts at minus `identity_bias`, so that a loop changes little at first and
gradients pass; with `layer_scale` on each block's branches (CaiT, arXiv:2103.17239) and a loss on
the last loop's output alone, which is all a head sees, this is the depth-recurrent Transformer
(arXiv:2603.21676; its exact gate and initial values are not known here). No parameter depends on
the number of loops: a trained model may think longer, `with_loops`.

Halting "act" (Graves 2016, arXiv:1603.08983, as in the Universal Transformer, arXiv:1807.03819):
each token stops on its own, at the first loop N where its probabilities reach the threshold,

    p_n = sigmoid(w . x_n + c)     y = sum_{n<N} p_n x_{n+1} + R x_{N+1}     R = 1 - sum_{n<N} p_n

or at the last. The weights sum to 1. From then on the token's x stays as it is, seen by others. The
cost to ponder is N + R, and R has the gradient; `layers.costs`. c starts at 1, as published. The
Universal Transformer's output blends each new x into the last one with that weight instead; the
sum is Graves's. `loop_embedding` adds sin and cos of n to x before each loop, as it does; its
positions are the mixers' business here.

All of it looks at one token at a time, so a looped model is causal where its mixers are. Every loop
has a state of its own for every mixer. Tokens that stopped cost what the others do: their x is
still read by later loops of later tokens.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from stepscan.layers.costs import charge
from stepscan.layers.projection import Linear
from stepscan.names import lookup

if TYPE_CHECKING:
    from stepscan.models.config import ModelConfig
    from stepscan.models.model import SequenceModel

States = tuple[Any, ...]
Stack = Callable[[Tensor, States, Tensor | None], tuple[Tensor, States]]


class Fixed(NamedTuple):
    """Every token takes every loop."""


class Adaptive(NamedTuple):
    """Every token stops on its own."""

    cost: float = 0.01
    """Weight of the cost to ponder."""
    threshold: float = 0.99
    """Sum of probabilities at which a token stops."""


HALTS: Mapping[str, type[Fixed] | type[Adaptive]] = {"act": Adaptive, "fixed": Fixed}


def halting(data: Mapping[str, Any]) -> Fixed | Adaptive:
    """From a name and options; unknown ones are errors."""
    options = dict(data)
    name = str(options.pop("name", ""))
    kind = lookup(HALTS, name, kind="halt")
    for key in options:
        lookup(dict.fromkeys(kind._fields), key, kind=f"option of {name}")
    made = kind(**options)
    if isinstance(made, Adaptive) and not (made.cost >= 0 and 0 < made.threshold <= 1):
        raise ValueError(f"halt: want cost at least 0 and 0 < threshold <= 1, got {made}")
    return made


class Depth(nn.Module):
    """What a stack needs to be repeated; for one plain loop, nothing."""

    def __init__(self, config: "ModelConfig") -> None:
        super().__init__()
        width, self.loops, self.how = config.width, config.loops, config.halting
        self.gate: Linear | None = None
        if config.identity_bias is not None:
            self.gate = Linear(2 * width, width)
            nn.init.constant_(self.gate.bias, -config.identity_bias)
        self.halt: Linear | None = None
        if isinstance(self.how, Adaptive):
            self.halt = Linear(width, 1)
            nn.init.ones_(self.halt.bias)
        self.embed = config.loop_embedding

    def run(
        self, stack: Stack, x: Tensor, state: States, resets: Tensor | None
    ) -> tuple[Tensor, States]:
        """The stack, `loops` times; `state` and what is returned hold one loop after the other."""
        size = len(state) // self.loops
        parts = [state[n * size : (n + 1) * size] for n in range(self.loops)]
        if self.halt is not None and isinstance(self.how, Adaptive):
            return self._until_halted(self.halt, self.how, stack, x, parts, resets)
        after: list[Any] = []
        for n, part in enumerate(parts):
            x, part = self._loop(n, stack, x, part, resets)  # noqa: PLW2901
            after.extend(part)
        return x, tuple(after)

    def _loop(
        self, n: int, stack: Stack, x: Tensor, state: States, resets: Tensor | None
    ) -> tuple[Tensor, States]:
        """One of them, told its number and gated where that was asked for."""
        new, state = stack(x + _sinusoid(n, x) if self.embed else x, state, resets)
        if self.gate is not None:
            new = x + torch.sigmoid(self.gate(torch.cat([x, new], -1))) * (new - x)
        return new, state

    def _until_halted(
        self,
        halt: Linear,
        how: Adaptive,
        stack: Stack,
        x: Tensor,
        parts: Sequence[States],
        resets: Tensor | None,
    ) -> tuple[Tensor, States]:
        """All of them, but a token that stopped stays as it is."""
        after: list[Any] = []
        y, spent, ponder = torch.zeros_like(x), x.new_zeros(()), x.new_zeros(())
        running = torch.ones_like(x[..., :1], dtype=torch.bool)
        for n, part in enumerate(parts):
            p = torch.sigmoid(halt(x))
            new, part = self._loop(n, stack, x, part, resets)  # noqa: PLW2901
            after.extend(part)
            last = n == len(parts) - 1
            stops = running if last else running & (spent + p >= how.threshold)
            rest = torch.where(stops, 1 - spent, 0.0)
            weight = torch.where(stops, rest, torch.where(running, p, 0.0))
            y, spent = y + weight * new, spent + weight
            ponder = ponder + running + rest
            x, running = torch.where(running, new, x), running & ~stops
        charge("ponder", ponder, weight=how.cost)
        return y, tuple(after)


def with_loops(model: "SequenceModel", loops: int) -> "SequenceModel":
    """A model of the same parameters that runs its stack another number of times."""
    config = dataclasses.replace(model.config, loops=loops)
    with torch.random.fork_rng([]):  # initial values that nobody keeps
        other = type(model)(config).to(next(model.parameters()))
    other.load_state_dict(model.state_dict(keep_vars=True), assign=True)
    return other.train(model.training)


def _sinusoid(n: int, x: Tensor) -> Tensor:
    """sin and cos of the loop's number, at the frequencies of the first Transformer's positions."""
    half = (x.shape[-1] + 1) // 2
    rates = torch.arange(half, device=x.device, dtype=x.dtype) * (-math.log(10000.0) / half)
    turns = (n + 1) * rates.exp()
    return torch.cat([turns.sin(), turns.cos()])[: x.shape[-1]]
