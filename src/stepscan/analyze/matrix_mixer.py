"""How a mixer lets tokens act on each other, written out.

    y_h = M_h(x) v_h                              M: [T, T] per head, v the values of the head

Attention, state spaces and their kin all are such matrices, of different structure: triangular
where the mixer is causal, with blocks off the diagonal of a rank that its state bounds (Hydra,
arXiv:2407.09941). Quadratic in T: for looking, not for running.

    y_i = sum_j W_ij x_j                          W_ij: [O, I], from all channels to all
    attention   W_ij = sum_h a^h_ij W^h           H fixed matrices, weighed by scores
    SSM         W_ij = C A^(i-j) B                as many directions as its lags span

So H heads are linear combinations of H matrices, and an SSM whose lags span k directions is that
many heads, not fewer ("How many heads make an SSM?"): `operator_span`, `min_heads`, `as_heads`.
What that means for learning is how loudly the last token hears of one d steps back:
`gradient_path`, flat for attention, a decaying exponential for a stable SSM.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class MatrixMixer(Protocol):
    """A mixer in two stages, the second of which is linear in the values."""

    @property
    def is_matrix(self) -> bool:
        """Whether `mix`, as configured, is one matrix per head."""

    def select(self, x: Tensor) -> tuple[Any, ...]:
        """The values [B T H P], then whatever mixes them, then other things."""

    def mix(self, values: Tensor, selection: Any) -> tuple[Tensor, Any]:
        """Mixed values for any P, and a state."""


def materialize(mixer: MatrixMixer, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B H T T"]:
    """M for each row and head: column s is what the mixer makes of a one at token s."""
    if not getattr(mixer, "is_matrix", False):
        raise ValueError(
            f"materialize: want a mixer that is one matrix per head, such as hydra with combine "
            f"'quasiseparable' or 'add', or bi_gla; got {type(mixer).__name__}"
        )
    values, selection, *_ = mixer.select(x)
    B, T, H, _ = values.shape
    ones = torch.eye(T, dtype=values.dtype, device=values.device)
    y, _ = mixer.mix(ones[:, None].expand(B, T, H, T), selection)
    return y.movedim(2, 1)


def lag_operators(
    run: Callable[[Float[Tensor, "I L I"]], Float[Tensor, "I L O"]], width: int, length: int
) -> Float[Tensor, "L O I"]:
    """W for every lag of a map that is linear and the same at all times, from its impulses."""
    impulses = torch.zeros(width, length, width, dtype=torch.float64)
    impulses[:, 0] = torch.eye(width, dtype=torch.float64)
    return run(impulses).permute(1, 2, 0)


def operator_span(operators: Float[Tensor, "L O I"]) -> Float[Tensor, " R"]:
    """Singular values of all operators as vectors: how many directions they have, and how far."""
    return torch.linalg.svdvals(operators.flatten(1))


def min_heads(operators: Float[Tensor, "L O I"], *, tolerance: float = 1e-10) -> int:
    """The fewest heads that have these operators, up to this part of the largest direction."""
    span = operator_span(operators)
    return int((span > tolerance * span[0]).sum()) if span[0] > 0 else 0


def as_heads(
    operators: Float[Tensor, "L O I"], heads: int
) -> tuple[Float[Tensor, "L H"], Float[Tensor, "H O I"]]:
    """The best H heads for these operators: a score for each lag, a matrix for each head.

    What is left out has the norm of the singular values after the H-th (Eckart and Young 1936).
    """
    if not 1 <= heads <= min(len(operators), operators[0].numel()):
        most = min(len(operators), operators[0].numel())
        raise ValueError(f"as_heads: want heads from 1 to {most}, got {heads}")
    U, S, V = torch.linalg.svd(operators.flatten(1), full_matrices=False)
    return U[:, :heads] * S[:heads], V[:heads].unflatten(1, operators.shape[1:])


def gradient_path(
    run: Callable[[Float[Tensor, "B T D"]], Float[Tensor, "B T O"]], x: Float[Tensor, "B T D"]
) -> Float[Tensor, "B T"]:
    """The norm of d(last output) / d(input) at every distance: 0 steps back, 1, 2 ..."""
    x = x.detach().requires_grad_()
    last = run(x)[:, -1]
    gradients = [
        torch.autograd.grad(last[:, i].sum(), x, retain_graph=True)[0] for i in range(last.shape[1])
    ]
    return torch.stack(gradients).square().sum((0, -1)).sqrt().flip(1)
