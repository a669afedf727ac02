r"""Linear attention with a memory per power of two of the past.

    y_t = sum_l scale_t[l] sum_{j in block l of t} exp(g_{j+1} + ... + g_t) (q_t . k_j) v_j

The tokens before position t are cut into blocks as a Fenwick tree cuts them: one of 2^(l-1) tokens
for each bit l - 1 that is set in t, the largest block first; level 0 is the token itself. So the
level of a pair is the number of bits up to the highest in which the two positions differ. There are
L levels above 0: what is further away than 2^(L-1) tokens, counted in whole blocks, shares the last
one, so that the state does not grow. With L = 1 + log2 T all levels are as published.

`level_scale` is [B, T, H, L + 1], `g` is `log_decay`, [B, T, H]. Positions count from the row's
last reset, which empties all memories. The caller scales q. State: `LogLinearState`.
Source: log-linear attention (arXiv:2506.04761).
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.chunks import from_start, to_end
from stepscan.ops.positions import positions
from stepscan.ops.segment_sums import segment_sums

CHUNK = 64


class LogLinearState(NamedTuple):
    """The memories, and the position of the next token."""

    memory: Float[Tensor, "B L H K V"]
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""


def recurrent(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    level_scale: Float[Tensor, "B T H M"],
    log_decay: Float[Tensor, "B T H"],
    state: LogLinearState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], LogLinearState]:
    """The definition, one step at a time: a binary counter whose carries add memories up."""
    memory, length = state
    L, ys = memory.shape[1], []
    bit = torch.arange(L - 1, device=q.device)
    steps = (x.unbind(1) for x in (q, k, v, level_scale, log_decay, resets))
    for q_t, k_t, v_t, scale, g_t, reset in zip(*steps, strict=True):
        length = length.masked_fill(reset, 0)
        memory = memory.masked_fill(reset[:, None, None, None, None], 0.0)
        memory = g_t.exp()[:, None, :, None, None] * memory
        written = k_t[..., None] * v_t[..., None, :]
        read = torch.einsum("bhl,bhk,blhkv->bhv", scale[..., 1:], q_t, memory)
        ys.append(read + scale[..., :1] * torch.einsum("bhk,bhkv->bhv", q_t, written))
        ones = (length[:, None] >> bit & 1).cumprod(1)  # the counter's trailing ones
        carried = F.pad(ones, (0, 1)).to(q.dtype)[..., None, None, None] * memory
        into = F.one_hot(ones.sum(1), L).to(q.dtype)[..., None, None, None]
        memory = memory - carried + into * (carried.sum(1) + written)[:, None]
        length = length + 1
    return torch.stack(ys, 1), LogLinearState(memory, length)


def chunked(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    level_scale: Float[Tensor, "B T H M"],
    log_decay: Float[Tensor, "B T H"],
    state: LogLinearState,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], LogLinearState]:
    """All pairs of a chunk at once, the memories carried between chunks."""
    ys: list[Tensor] = []
    parts = (x.split(CHUNK, 1) for x in (q, k, v, level_scale, log_decay, resets))
    for q_c, k_c, v_c, scale, g, reset in zip(*parts, strict=True):
        y, state = _chunk(q_c, k_c, v_c, scale, g, state=state, resets=reset)
        ys.append(y)
    return torch.cat(ys, 1), state


def _chunk(
    q: Float[Tensor, "B C H K"],
    k: Float[Tensor, "B C H K"],
    v: Float[Tensor, "B C H V"],
    scale: Float[Tensor, "B C H M"],
    g: Float[Tensor, "B C H"],
    *,
    state: LogLinearState,
    resets: Bool[Tensor, "B C"],
) -> tuple[Float[Tensor, "B C H V"], LogLinearState]:
    memory, length = state
    L = memory.shape[1]
    g = g.masked_fill(resets[..., None], -torch.inf).transpose(1, 2)[..., None]  # [B H C 1]
    q, k, v, scale = (x.transpose(1, 2) for x in (q, k, v, scale))
    place = positions(length, resets)
    pairs = _level(place[:, :, None], place[:, None], L)  # [B i j]
    weights = _take(scale, pairs) * segment_sums(g).squeeze(-1).exp()
    inside = (weights * (q @ k.mT)) @ v
    level = torch.arange(1, L + 1, device=q.device)
    first = length[:, None] >> level << level  # where the block of each memory begins, [B L]
    first = first * (level < L)  # the last one has all from the start
    start = from_start(g)
    reads = _take(scale, _level(place[:, :, None], first[:, None], L)) * start  # [B H C L]
    wide = (reads[..., None] * q[..., None, :]).flatten(-2)  # [B H C (L K)]
    y = inside + wide @ memory.transpose(1, 2).flatten(2, 3)
    length = place[:, -1] + 1
    # Pairs of other segments have no weight, whatever level they seem to have.
    into = F.one_hot(_level(length[:, None], place, L).clamp(min=1) - 1, L).to(q.dtype)
    writes = into[:, None, ..., None] * (k * to_end(g))[..., None, :]  # [B H C L K]
    written = (writes.flatten(-2).mT @ v).unflatten(2, (L, -1)).transpose(1, 2)
    moved = F.one_hot(_level(length[:, None], first, L).clamp(min=1) - 1, L).to(q.dtype)
    kept = torch.einsum("blm,blhkv->bmhkv", moved, memory)
    memory = start[:, None, :, -1, :, None] * kept + written
    return y.transpose(1, 2), LogLinearState(memory, length)


def _level(i: Int[Tensor, "..."], j: Int[Tensor, "..."], levels: int) -> Int[Tensor, "..."]:
    """Bits up to the highest one in which two positions differ, `levels` at most."""
    differ = i ^ j
    return torch.stack([differ >> bit > 0 for bit in range(levels)]).sum(0)


def _take(scale: Float[Tensor, "B H C M"], level: Int[Tensor, "B C n"]) -> Float[Tensor, "B H C n"]:
    return scale.gather(-1, level[:, None].expand(-1, scale.shape[1], -1, -1))


FORMS: Mapping[str, Callable[..., tuple[Tensor, LogLinearState]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked}
)


def log_linear_attention(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    level_scale: Float[Tensor, "B T H M"],
    log_decay: Float[Tensor, "B T H"] | None = None,
    state: LogLinearState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], LogLinearState]:
    """Read a memory per level, weighed by the token; the caller scales q.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` picks by length, never
    changing the result.
    """
    fits = q.ndim == 4 and k.shape == q.shape and v.shape[:-1] == q.shape[:-1]
    fits = fits and level_scale.shape[:3] == q.shape[:3] and level_scale.shape[3:] >= (2,)
    if not fits or (log_decay is not None and log_decay.shape != q.shape[:3]):
        raise ValueError(
            "log_linear_attention: want q, k [B T H K], v [B T H V], level_scale [B T H M], M at "
            f"least 2, log_decay [B T H]; got q {tuple(q.shape)}, k {tuple(k.shape)}, "
            f"v {tuple(v.shape)}, level_scale {tuple(level_scale.shape)}, "
            f"log_decay {None if log_decay is None else tuple(log_decay.shape)}"
        )
    (B, T, H, K), L, V = q.shape, level_scale.shape[3] - 1, v.shape[3]
    form = ("recurrent" if T <= 2 else "chunked") if form == "auto" else form
    run = lookup(FORMS, form, kind="form of log_linear_attention")
    resets = as_resets(resets, q)
    memory, length = (None, None) if state is None else state
    memory = as_state(memory, (B, L, H, K, V), q, k, v, level_scale, log_decay)
    if length is None:
        length = torch.zeros(B, dtype=torch.int64, device=q.device)
    if length.shape != (B,) or length.dtype != torch.int64:
        raise ValueError(
            f"state: want length int64 {(B,)}, got {length.dtype} {tuple(length.shape)}"
        )
    if T == 0:
        return v, LogLinearState(memory, length)
    g = torch.zeros_like(level_scale[..., 0]) if log_decay is None else log_decay
    wide = (x.to(memory.dtype) for x in (q, k, v))
    scale, g = (x.to(memory.dtype) for x in (level_scale, g))
    bits = length[:, None] >> torch.arange(L, device=q.device)
    used = torch.cat([bits[:, :-1] & 1, bits[:, -1:]], 1) > 0  # a level without tokens holds zeros
    memory = memory.masked_fill(~used[..., None, None, None], 0.0)
    state = LogLinearState(memory, length)
    y, state = run(*wide, level_scale=scale, log_decay=g, state=state, resets=resets)
    return y.to(v.dtype), state
