"""Sequences of selected tokens: what a router sends to a module, closed up, and put back.

    tokens     a  b  c  d  e          selected by group 0: b, d, e; by group 1: a, d
    group 0    b  d  e  .             a place without a token holds some token that is not selected:
    group 1    a  d  .  .             who runs over the places must make it one that changes nothing

A reset at a token that a group does not select is one at the next token that it does select, or,
if there is none, at the end (`Selection.gone`). Sparse modular activation (arXiv:2306.11197) calls
this compress and extract; mixtures of memories (arXiv:2502.13685) do it per memory.

The number of places S depends on the data: it is the largest count, or, inside `torch.compile`,
which knows no such sizes, the number of tokens. Results do not depend on it.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from stepscan.ops.arguments import as_resets


class Selection(NamedTuple):
    """Where the tokens of each group stand."""

    token: Int[Tensor, "B G S"]
    """The token at each place, in order of time."""
    used: Bool[Tensor, "B G S"]
    """Whether that token is a selected one: the first places are."""
    resets: Bool[Tensor, "B G S"]
    """Whether the group starts afresh before that token."""
    gone: Bool[Tensor, "B G"]
    """Whether the row was reset after the last selected token."""


def select(selected: Bool[Tensor, "B T G"], resets: Bool[Tensor, "B T"] | None = None) -> Selection:
    """Close up what each group selects."""
    B, T, G = selected.shape
    segment = as_resets(resets, selected).cumsum(1)
    selected = selected.transpose(1, 2)
    count = selected.sum(-1)
    token = (~selected).to(torch.uint8).argsort(dim=-1, stable=True)
    if not torch.compiler.is_compiling() and token.numel():
        token = token[..., : int(count.max())]
    used = torch.arange(token.shape[-1], device=token.device) < count[..., None]
    there = segment[:, None].expand(B, G, T).gather(-1, token)
    before = F.pad(there, (1, 0))
    last = before.gather(-1, count[..., None]).squeeze(-1)
    final = segment[:, -1:] if T else segment.sum(1, keepdim=True)
    return Selection(token, used, (there != before[..., :-1]) & used, last != final)


def compress(x: Shaped[Tensor, "B T *rest"], selection: Selection) -> Shaped[Tensor, "B G S *rest"]:
    """The selected tokens of x, for each group."""
    token = selection.token
    index = _wide(token.flatten(1), x).expand(-1, -1, *x.shape[2:])
    return x.gather(1, index).unflatten(1, token.shape[1:])


def compress_each(
    x: Shaped[Tensor, "B T G *rest"], selection: Selection
) -> Shaped[Tensor, "B G S *rest"]:
    """The same where x holds something else for each group."""
    x = x.transpose(1, 2)
    return x.gather(2, _wide(selection.token, x).expand(-1, -1, -1, *x.shape[3:]))


def expand(
    y: Float[Tensor, "B G S *rest"], selection: Selection, T: int
) -> Float[Tensor, "B T *rest"]:
    """Back to the tokens: the sum over the groups that selected each, zero where none did."""
    y = y.masked_fill(~_wide(selection.used, y), 0.0).flatten(1, 2)
    index = _wide(selection.token.flatten(1), y).expand_as(y)
    return y.new_zeros(len(y), T, *y.shape[2:]).scatter_add(1, index, y)


def last_inputs(
    past: Float[Tensor, "B G P E"], x: Float[Tensor, "B G S E"], selection: Selection
) -> Float[Tensor, "B G P E"]:
    """The last P selected tokens of `past` and x together, zero from before a reset: the state of a
    window over the places.
    """
    P = past.shape[2]
    both = torch.cat([past, x.to(past.dtype)], 2)
    segment = F.pad(selection.resets.cumsum(-1), (P, 0))
    count = selection.used.sum(-1, keepdim=True)
    place = count + torch.arange(P, device=x.device)
    final = selection.resets.sum(-1, keepdim=True) + selection.gone[..., None].long()
    old = segment.gather(-1, place) != final
    both = both.gather(2, place[..., None].expand(-1, -1, -1, both.shape[-1]))
    return both.masked_fill(old[..., None], 0.0)


def _wide(index: Tensor, like: Tensor) -> Tensor:
    return index.reshape(*index.shape, *(1,) * (like.ndim - index.ndim))
