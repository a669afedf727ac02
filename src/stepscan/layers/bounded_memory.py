"""Linear attention whose memory cannot overfill: options for sequences longer than any in training.

    forget_scale    S_t = exp(c g_t) S_{t-1} + k_t v_t^T         every log decay times c
    state_norm      S_t = S min(1, p / |S|)                      S what it would be without
    memory_window   S_t = M_t - exp(g_{t-w+1} + ... + g_t) M_{t-w}      of the last w tokens alone

A memory larger than its training length needs never learns to forget, and past that length it
fills up. The three are the mitigations of Chen et al. 2024 (arXiv:2410.07145, first version): they
need no training, so they may be set on a trained model. The norm here is that of a head's matrix.

The published window takes the difference of two sums that both began with the sequence; in float32
it drowns in what they share. Here M begins anew with every w tokens: never more than two windows.
The norm makes the step nonlinear, one token after the other: slow beside the others.
State: K x V floats per head; with a window the keys, values and decays of its w tokens instead.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_attention import linear_attention


@dataclass(frozen=True, kw_only=True)
class MemoryBounds:
    """Fields of the configs whose memory may be bounded."""

    forget_scale: float = 1.0
    """Factor c of every log decay: above 1 forgets more."""
    state_norm: float | None = None
    """Largest norm p of a head's memory; None: any."""
    memory_window: int | None = None
    """The memory holds the last so many tokens alone; None: all that it did not forget."""

    def __post_init__(self) -> None:
        """Reject what bounds nothing."""
        if not 0 < self.forget_scale < float("inf"):
            raise ValueError(f"want forget_scale above 0, got {self.forget_scale}")
        if self.state_norm is not None and not self.state_norm > 0:
            raise ValueError(f"want state_norm above 0 or None, got {self.state_norm}")
        if self.memory_window is not None and self.memory_window < 1:
            raise ValueError(f"want memory_window at least 1 or None, got {self.memory_window}")
        if self.state_norm is not None and self.memory_window is not None:
            raise ValueError(
                "want state_norm or memory_window, got both: what a norm scaled down cannot be "
                "taken out again when it leaves the window; set one of them to None"
            )


class RecentWrites(NamedTuple):
    """A memory of the last w tokens: what they wrote, the newest last; nothing yet is zeros."""

    keys: Float[Tensor, "B W G K"]
    values: Float[Tensor, "B W H V"]
    log_decay: Float[Tensor, "B W H #K"]


Memory = Float[Tensor, "B H K V"] | RecentWrites
"""Matrices, or what they are computed from."""


def start(
    bounds: MemoryBounds, zeros: Float[Tensor, "B H K V"], *, groups: int, decays: int
) -> Memory:
    """The empty memory: `zeros` itself, or a window of no tokens yet.

    Args:
        bounds: The config of the mixer.
        zeros: An empty memory without a window.
        groups: Heads of the keys.
        decays: Decays of a head: 1, or one per key channel.
    """
    if bounds.memory_window is None:
        return zeros
    B, H, K, V = zeros.shape
    sizes = (groups, K), (H, V), (H, decays)
    return RecentWrites(*(zeros.new_zeros(B, bounds.memory_window, *size) for size in sizes))


def bounded_attention(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"],
    bounds: MemoryBounds,
    state: Any,
    resets: Bool[Tensor, "B T"] | None,
) -> tuple[Float[Tensor, "B T H V"], Any]:
    """`linear_attention` with the bounds of a config; without any it is that and nothing else.

    Decays per key channel want keys of as many heads as values.
    """
    if bounds.forget_scale != 1:
        log_decay = log_decay * bounds.forget_scale
    if bounds.memory_window is None and bounds.state_norm is None:
        return linear_attention(q, k, v, log_decay=log_decay, state=state, resets=resets)
    resets = as_resets(resets, q)
    log_decay = log_decay if log_decay.ndim == 4 else log_decay[..., None]
    shape = len(v), v.shape[2], k.shape[3], v.shape[3]
    if state is None:
        zeros = as_state(None, shape, q, k, v, log_decay)
        state = start(bounds, zeros, groups=k.shape[2], decays=log_decay.shape[3])
    if v.shape[1] == 0:
        return v, state
    if bounds.state_norm is None:
        return _windowed(q, k, v, log_decay, state, resets)
    memory = as_state(state, shape, q, k, v, log_decay)
    return _normed(q, k, v, log_decay, memory, resets, bounds.state_norm)


def _normed(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H #K"],
    memory: Float[Tensor, "B H K V"],
    resets: Bool[Tensor, "B T"],
    largest: float,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    heads = v.shape[2] // k.shape[2]
    q, k = (x.repeat_interleave(heads, 2) for x in (q, k))
    given = (x.to(memory.dtype) for x in (q, k, v, log_decay.exp()))
    ys: list[Tensor] = []
    for q_t, k_t, v_t, a_t, reset in zip(*(x.unbind(1) for x in (*given, resets)), strict=True):
        memory = memory.masked_fill(reset[:, None, None, None], 0.0)
        memory = a_t[..., None] * memory + k_t[..., None] * v_t[..., None, :]
        size = torch.linalg.vector_norm(memory, dim=(2, 3), keepdim=True)
        memory = memory * (largest / size.clamp_min(largest))
        ys.append(torch.einsum("bhk,bhkv->bhv", q_t, memory))
    return torch.stack(ys, 1).to(v.dtype), memory


def _windowed(
    q: Float[Tensor, "B T G K"],
    k: Float[Tensor, "B T G K"],
    v: Float[Tensor, "B T H V"],
    log_decay: Float[Tensor, "B T H #K"],
    state: RecentWrites,
    resets: Bool[Tensor, "B T"],
) -> tuple[Float[Tensor, "B T H V"], RecentWrites]:
    """Each block of w tokens meets the block before it, whose first tokens leave one by one."""
    B, T = resets.shape
    w = state.keys.shape[1]
    dtype = as_state(None, (), q, k, v, log_decay, *state).dtype
    new = (k, v, log_decay)
    writes = [torch.cat([old.to(dtype), x.to(dtype)], 1) for old, x in zip(state, new, strict=True)]
    cut = F.pad(resets, (w, 0))
    size = min(w, T)  # of a block; of the blocks before them w
    count = -(-T // size)
    blocks = [_blocks(x, w, size, count) for x in (*writes, cut)]
    keys, values, g, fresh = ([x[:, :w], x[:, w:]] for x in blocks)
    q = _blocks(F.pad(q.to(dtype), (0, 0, 0, 0, w, 0)), w, size, count)[:, w:]

    both = [torch.cat(x, 1) for x in (keys, values, g, fresh)]
    y, _ = _attend(F.pad(q, (0, 0, 0, 0, w, 0)), *both)
    y = y[:, w:]
    # What token t - w and those before it left in M_t: M_{t-w}, and all decays since then.
    before, here = (
        x.masked_fill(stop[..., None, None], -torch.inf) for x, stop in zip(g, fresh, strict=True)
    )
    after = before.flip(1).cumsum(1).flip(1)
    after = F.pad(after, (0, 0, 0, 0, 0, 1))[:, 1 : size + 1]
    kept = (after + here.cumsum(1)).exp()  # sums, no differences: both may be infinite
    left = [x[0][:, :size] for x in (keys, values, g, fresh)]
    if kept.shape[-1] == 1:  # groups share their queries, not their decays
        y = y - _attend(q, *left)[0] * kept
    else:
        y = y - _attend(q * kept, *left)[0]
    y = y.unflatten(0, (B, count)).flatten(1, 2)[:, :T]
    return y.to(v.dtype), _recent(writes, cut, w)


def _blocks(x: Tensor, w: int, size: int, count: int) -> Tensor:
    """[B w+T ...] -> [B*count w+size ...]: blocks of the T tokens, each behind the w before it."""
    missing = w + count * size - x.shape[1]
    x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
    return x.unfold(1, w + size, size).movedim(-1, 2).flatten(0, 1)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, resets: Tensor
) -> tuple[Tensor, Tensor]:
    g = log_decay.squeeze(-1) if log_decay.shape[-1] == 1 else log_decay
    return linear_attention(q, k, v, log_decay=g, resets=resets)


def _recent(writes: list[Tensor], cut: Tensor, w: int) -> RecentWrites:
    """The last w tokens, without those from before a reset."""
    later = cut.long().flip(1).cumsum(1).flip(1) - cut.long()
    ended = later[:, -w:, None, None] > 0
    return RecentWrites(*(x[:, -w:].masked_fill(ended, 0.0) for x in writes))
