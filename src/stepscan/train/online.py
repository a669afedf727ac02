"""Learning while reading: the gradient of every step's loss, without going back in time.

A model is a step, state_t = F(state_{t-1}, x_t, w), and L_t is the loss of what it says on the way.
The gradient of L_t through all of the past is

    dL_t/dw = direct part + (dL_t/d state_{t-1}) J_{t-1},      J_t = D_t J_{t-1} + I_t

with D_t = d state_t / d state_{t-1} and I_t = d state_t / d w at a fixed state_{t-1}. What differs
is how the influence J [S P] is kept:

    rtrl    as it is: exact where the weights stand still. S numbers of state, P of weights: S P of
            memory, S^2 P of work (Williams and Zipser 1989)
    snap1   only where a weight acts on a number of the state within one step: J * (I != 0). Equal
            to rtrl where numbers of the state do not mix (Menick et al. 2020, arXiv:2006.07232)
    uoro    a product of two random vectors whose mean is J: S + P (Tallec and Ollivier 2017,
            arXiv:1702.05043)
    dni     not at all: a linear map learns to foretell dL_{>t}/d state_t from state_t, and its word
            is carried back one step (Jaderberg et al. 2016, arXiv:1608.05343)

All four in one notation: Marschall et al. 2020, arXiv:1907.02649. As everywhere in online learning,
weights move while J is gathered: each part of it belongs to the weights of its own time.
"""

import abc
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stepscan import state as states
from stepscan.names import lookup

MOST = 1 << 28
"""Numbers that an influence matrix may hold."""


class Step(NamedTuple):
    """One step, with its graph."""

    before: list[Tensor]
    """The parts of the old state, cut from what came before them."""
    weights: Sequence[Tensor]
    after: Float[Tensor, " S"]
    """The new state, laid end to end."""
    loss: Float[Tensor, ""]
    again: Callable[[Float[Tensor, " S"]], Float[Tensor, " S"]]
    """The new state, had the old one been this."""


class Influence(abc.ABC):
    """What is known of how the weights came to act on the state. One for each stream."""

    def __init__(self, rng: torch.Generator) -> None:
        self.rng = rng

    @abc.abstractmethod
    def read(self, step: Step) -> Float[Tensor, " P"]:
        """The gradient of this step's loss; then take the step."""


class Rtrl(Influence):
    """Real-time recurrent learning: J itself."""

    matrix: Float[Tensor, "S P"] | None = None

    def read(self, step: Step) -> Float[Tensor, " P"]:
        """Exact, as long as weights stand still."""
        into, direct = _gradient(step.loss, step)
        if self.matrix is None:
            size = len(step.after) * len(direct)
            if size > MOST:
                raise ValueError(
                    f"online: {len(step.after):,} numbers of state and {len(direct):,} weights "
                    f"want a matrix of {size:,}, at most {MOST:,}; take method='uoro' or 'dni', "
                    "or a smaller model"
                )
            self.matrix = direct.new_zeros(len(step.after), len(direct))
        found = direct if into is None else direct + into @ self.matrix
        turn, acts = _jacobian(step)
        self.matrix = self.kept(acts if turn is None else acts + turn @ self.matrix, acts)
        return found

    def kept(
        self, matrix: Float[Tensor, "S P"], acts: Float[Tensor, "S P"]
    ) -> Float[Tensor, "S P"]:
        """What is remembered of J_t = D_t J_{t-1} + I_t, here all of it; `acts` is I_t."""
        return matrix


class Snap1(Rtrl):
    """The sparse one-step approximation: J where I has ever been other than zero."""

    mask: Tensor | None = None

    def kept(
        self, matrix: Float[Tensor, "S P"], acts: Float[Tensor, "S P"]
    ) -> Float[Tensor, "S P"]:
        """Nothing of J but where the weights act at once."""
        here = acts != 0
        self.mask = here if self.mask is None else self.mask | here
        return matrix * self.mask


class Uoro(Influence):
    """Unbiased online recurrent optimisation: J = E[column row^T]."""

    column: Float[Tensor, " S"] | None = None
    row: Float[Tensor, " P"]

    def read(self, step: Step) -> Float[Tensor, " P"]:
        """Unbiased: right in the mean over the random signs, as long as weights stand still."""
        into, direct = _gradient(step.loss, step)
        if self.column is None:
            self.column = torch.zeros_like(step.after)
            self.row = torch.zeros_like(direct)
        found = direct if into is None else direct + (into @ self.column) * self.row
        signs = torch.randint(0, 2, step.after.shape, generator=self.rng)
        signs = (2 * signs - 1).to(step.after)
        _, drawn = _gradient(step.after @ signs, step)
        moved = _forward(step, self.column)
        # The scales that make the variance least (equation 13); the mean does not depend on them.
        old = _balance(self.row, moved)
        new = _balance(drawn, signs)
        self.column = old * moved + new * signs
        self.row = self.row / old + drawn / new
        return found


class Dni(Influence):
    """Decoupled interfaces: a linear synthetic gradient, learned from its own next word."""

    rate = 1e-2
    discount = 0.95
    """Of the losses to come, so that the synthetic gradient stays bounded."""
    guess: Float[Tensor, "S S1"] | None = None

    def read(self, step: Step) -> Float[Tensor, " P"]:
        """Of this step's loss, and of what the next ones are said to ask of the state."""
        now = step.after.detach()
        if self.guess is None:
            self.guess = now.new_zeros(len(now), len(now) + 1)
        said = self.discount * (self.guess @ _and_one(now))
        into, direct = _gradient(step.loss + step.after @ said, step)
        if into is not None:
            before = _and_one(_flat(step.before).detach())
            error = self.guess @ before - into
            # Normalised least mean squares: a step that no scale of the state makes unstable.
            self.guess -= self.rate * torch.outer(error, before) / (before @ before)
        return direct


METHODS: Mapping[str, type[Influence]] = MappingProxyType(
    {"rtrl": Rtrl, "snap1": Snap1, "uoro": Uoro, "dni": Dni}
)


class Online:
    """A model that learns from every step of one stream as it reads it.

    Args:
        model: Called as `model(inputs, state) -> (outputs, state)` with one step of one row: a
            mixer, a cell or a whole model. Its state must not grow.
        loss: Outputs and a target to a number.
        optimizer: Over the weights that learn; None only gathers gradients, in `gradient`.
        method: One of METHODS.
        seed: Of the random signs of uoro.

    Raises:
        ValueError: an unknown method; more than one row; a state that grows.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[Any, Any], Tensor],
        optimizer: torch.optim.Optimizer | None = None,
        *,
        method: str = "rtrl",
        seed: int = 0,
    ) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.influence = lookup(METHODS, method, kind="online method")(
            torch.Generator().manual_seed(seed)
        )
        self.weights = [p for p in model.parameters() if p.requires_grad]
        self.state: Any = None
        """After the last step; constant, without a graph."""
        self.gradient: Float[Tensor, " P"] | None = None
        """Of the last step's loss, over all weights laid end to end."""

    def step(self, inputs: Any, target: Any) -> tuple[Any, float]:
        """Read one step, answer, then learn from the target.

        Returns:
            What the model said before it learned, and the loss of that.
        """
        before, rebuild = _parts(self.state)

        def run(parts: Sequence[Tensor]) -> tuple[Any, Tensor, Any]:
            outputs, state = self.model(inputs, rebuild(parts))
            return outputs, _flat(_floats(state)), state

        def again(state: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
            pieces = [a.view_as(b) for a, b in zip(state.split(sizes), before, strict=True)]
            return run(pieces)[1]

        outputs, after, state = run(before)
        sizes = [part.numel() for part in before]
        if before and len(after) != sum(sizes):
            raise ValueError(
                "online: the state of this model grows with the sequence; give its attention a "
                "window, or take mixers with a constant state"
            )
        loss = self.loss(outputs, target)
        self.gradient = self.influence.read(Step(before, self.weights, after, loss, again))
        self.state = states.detach(state)
        if self.optimizer is not None:
            for weight, part in zip(
                self.weights,
                self.gradient.split([w.numel() for w in self.weights]),
                strict=True,
            ):
                weight.grad = part.view_as(weight).clone()
            self.optimizer.step()
        return pytree.tree_map_only(Tensor, Tensor.detach, outputs), float(loss.detach())


def _parts(state: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """The parts of a state that gradients flow through, and how to put others in their place."""
    leaves, spec = pytree.tree_flatten(state)
    places = [i for i, leaf in enumerate(leaves) if _is_float(leaf)]
    cut = [leaves[i].detach().requires_grad_() for i in places]
    if any(part.shape[0] != 1 for part in cut):
        raise ValueError(f"online: want one row, got {max(part.shape[0] for part in cut)}")

    def rebuild(parts: Sequence[Tensor]) -> Any:
        if state is None:
            return None
        new = dict(zip(places, parts, strict=True))
        return pytree.tree_unflatten([new.get(i, leaf) for i, leaf in enumerate(leaves)], spec)

    return cut, rebuild


def _floats(state: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(state) if _is_float(leaf)]


def _is_float(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _flat(parts: Sequence[Tensor]) -> Float[Tensor, " S"]:
    return torch.cat([part.flatten() for part in parts])


def _gradient(
    of: Float[Tensor, ""], step: Step
) -> tuple[Float[Tensor, " S"] | None, Float[Tensor, " P"]]:
    """Of a number: over the old state (None if there was none), and over the weights."""
    inputs = [*step.before, *step.weights]
    if not of.requires_grad:
        found: list[Tensor] = [torch.zeros_like(x) for x in inputs]
    else:
        found = list(torch.autograd.grad(of, inputs, retain_graph=True, materialize_grads=True))
    old, weights = found[: len(step.before)], found[len(step.before) :]
    return (_flat(old) if old else None), _flat(weights)


def _jacobian(step: Step) -> tuple[Float[Tensor, "S S"] | None, Float[Tensor, "S P"]]:
    """D_t (None if there was no old state) and I_t: a backward pass for each number of the state,
    at once where every operation on the way can be batched.
    """
    inputs = [*step.before, *step.weights]
    size = len(step.after)
    rows: list[Tensor | None] = [None] * len(inputs)
    if step.after.requires_grad:
        every = torch.eye(size, dtype=step.after.dtype)
        options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
        try:
            rows = [
                *torch.autograd.grad(step.after, inputs, every, is_grads_batched=True, **options)
            ]
        except RuntimeError:  # a kernel of ours on the way
            found = [torch.autograd.grad(step.after, inputs, one, **options) for one in every]
            rows = [None if x[0] is None else torch.stack(x) for x in zip(*found, strict=True)]
    flat = [
        x.new_zeros(size, x.numel()) if row is None else row.flatten(1)
        for x, row in zip(inputs, rows, strict=True)
    ]
    old, weights = flat[: len(step.before)], flat[len(step.before) :]
    return (torch.cat(old, 1) if old else None), torch.cat(weights, 1)


@torch.no_grad()
def _forward(step: Step, direction: Float[Tensor, " S"]) -> Float[Tensor, " S"]:
    """D_t times a direction, by a small difference of two steps (their equation 9)."""
    length = direction.norm()
    if not step.before or not length:
        return torch.zeros_like(step.after)
    here = _flat(step.before)
    nudge = torch.finfo(here.dtype).eps ** 0.5 * (1 + here.norm()) / length
    ahead, back = step.again(here + nudge * direction), step.again(here - nudge * direction)
    return (ahead - back) / (2 * nudge)


def _balance(a: Tensor, b: Tensor) -> Tensor:
    """sqrt(|a| / |b|), kept away from 0 and infinity."""
    tiny = torch.finfo(a.dtype).tiny ** 0.5
    return ((a.norm() + tiny) / (b.norm() + tiny)).sqrt()


def _and_one(x: Float[Tensor, " S"]) -> Float[Tensor, " S1"]:
    return torch.cat([x, x.new_ones(1)])
