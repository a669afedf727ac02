"""A recurrence over segments of C tokens, and its states at their ends.

A row's segments count from its last reset, so they end at other tokens in every row. A cut is made
where a segment of the row ends and at every C-th token of the stretch: then all pieces have C
tokens or fewer, their number depends on T and C only, and all rows take one piece after the other.
A shorter piece is filled up with zeros, which must leave the state as it is: true for every op with
log decay 0, key 0 and step 0.
Outside `torch.compile` the number of pieces is what the data need; results do not depend on it.
Source: checkpoints of memories as in Memory Caching (arXiv:2602.24281).
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


class Checkpoints(NamedTuple):
    """The states after R pieces."""

    states: Float[Tensor, "B R *rest"]
    token: Int[Tensor, "B R"]
    """The last token of each piece; 0 for a piece without tokens."""
    whole: Bool[Tensor, "B R"]
    """Whether a segment ends there."""


def checkpoints(
    run: Callable[..., tuple[Tensor, Tensor]],
    inputs: Mapping[str, Tensor],
    *,
    place: Int[Tensor, "B T"],
    length: int,
    state: Tensor,
    resets: Bool[Tensor, "B T"],
    restart: bool = False,
) -> tuple[Float[Tensor, "B T *out"], Tensor, Checkpoints]:
    """`run(**inputs, state=, resets=)` over all tokens, and what it holds at each segment's end.

    `place` counts tokens since the row's last reset; `restart` empties the state at each segment's
    start.
    """
    B, T = place.shape
    if T == 0:
        y, state = run(**inputs, state=state, resets=resets)
        none = place.new_zeros(B, 0)
        return y, state, Checkpoints(state[:, None][:, :0], none, none.bool())
    ends = (place + 1) % length == 0
    index = torch.arange(T, device=place.device)
    cut = F.pad(ends[:, :-1], (1, 0), value=True) | (index % length == 0)
    piece = cut.cumsum(1) - 1
    slot = piece * length + index - torch.where(cut, index, 0).cummax(1).values
    count = min(T, -(-T // length) + (T + length - 1) // length)
    if not torch.compiler.is_compiling():
        count = int(piece.max()) + 1
    none = slot.new_zeros(B, count * length)
    token = none.scatter(1, slot, index.expand(B, T))
    used = none.bool().scatter(1, slot, True)
    grid = {name: _take(x, token, used).unflatten(1, (count, -1)) for name, x in inputs.items()}
    again = (resets.gather(1, token) & used).unflatten(1, (count, -1))
    token = token.unflatten(1, (count, -1)).amax(-1)  # in order of time, zeros after them
    whole = ends.gather(1, token) & used.unflatten(1, (count, -1))[..., 0]
    ys, states = [], []
    for r in range(count):
        y, state = run(**{n: x[:, r] for n, x in grid.items()}, state=state, resets=again[:, r])
        ys.append(y)
        states.append(state)
        if restart:
            state = state.masked_fill(_wide(whole[:, r], state), 0.0)
    y = torch.cat(ys, 1)
    y = y.gather(1, _wide(slot, y).expand(-1, -1, *y.shape[2:]))
    return y, state, Checkpoints(torch.stack(states, 1), token, whole)


def _take(x: Tensor, token: Tensor, used: Tensor) -> Tensor:
    x = x.gather(1, _wide(token, x).expand(-1, -1, *x.shape[2:]))
    return x.masked_fill(~_wide(used, x), 0.0)


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index.reshape(*index.shape, *(1,) * (like.ndim - index.ndim))
