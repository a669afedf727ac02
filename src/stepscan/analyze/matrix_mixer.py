"""The matrix by which a mixer mixes a sequence, written out (Hydra, arXiv:2407.09941).

    y_h = M_h(x) v_h                              M: [T, T] per head, v the values of the head

Attention, state spaces and their kin all are such matrices, of different structure: triangular
where the mixer is causal, with blocks off the diagonal of a rank that its state bounds. Quadratic
in T: for looking, not for running.
"""

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
