# ruff: noqa: PT028 - the op is no test
r"""A memory that learns at test time: a small network trained, token by token, on keys and values.

The memory is f(k; W) with W = link(A), and A is what learns:

    G_t = sum_{t - window < i <= t} w_i grad loss(f(k_i; W_start), v_i)
    S_t = m_t S_{t-1} - rate_t G_t                          S = -rate G without `momentum`
    A_t = exp(g_t) A_{t-1} + S_t
    y_t = f(q_t; link(A_t))                                 y: [B, T, H, V]

W_start is the memory after the last whole chunk of `rule.chunk` tokens, counted from the last
reset: the chunk is a part of the model, and 1 is the online memory. With `orthogonalize` steps of
Newton-Schulz (Muon), S = m S + G and A = exp(g) A - rate NS(S), layer by layer.
With `scale`, a read and the chunk's end see A_start + scale_t (A_t - A_start): TTT's average.

The network, the losses and the links (what keeps a memory in place: retention) are those of
`ops/memory_network.py`. A link acts on the sum of all gradients so far (mirror descent), so that
A stays a linear recurrence inside a chunk. A reset puts the memory back to `init`, empties S and
the window, and starts a chunk. The decay meets A but not the gradient, which is taken before it.
Sources: TTT (arXiv:2407.04620), Titans (arXiv:2501.00663), Miras (arXiv:2504.13173), ATLAS
(arXiv:2505.23735), Muon (Jordan et al. 2024).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.memory_network import (
    Factors,
    Memory,
    Rule,
    between,
    finish,
    fitted,
    gradients,
    linked,
    orthogonal,
    pack,
    read,
    unpacked,
)
from stepscan.ops.positions import positions


class MemoryState(NamedTuple):
    """A learning memory and the chunk it is in; P numbers are all its layers', flat."""

    start: Float[Tensor, "B H P"]
    """A at the end of the last whole chunk, where gradients are taken."""
    now: Float[Tensor, "B H P"]
    """A after the last token."""
    momentum: Float[Tensor, "B H M"]
    """S; M is P, or 0 without momentum."""
    position: Int[Tensor, "B"]
    """Tokens in the unfinished chunk."""
    keys: Float[Tensor, "B W H K"]
    """The W = window - 1 last keys, oldest first; zero before the row began."""
    values: Float[Tensor, "B W H V"]
    weights: Float[Tensor, "B W H"]
    thresholds: Float[Tensor, "B W H"]


class Tokens(NamedTuple):
    """What one call reads, complete and in the state's dtype; `None` is a part the rule lacks."""

    q: Float[Tensor, "B T H K"]
    k: Float[Tensor, "B T H K"]
    v: Float[Tensor, "B T H V"]
    weight: Float[Tensor, "B T H"]
    threshold: Float[Tensor, "B T H"]
    rate: Float[Tensor, "B T H"]
    decay: Float[Tensor, "B T H"]
    momentum: Float[Tensor, "B T H"] | None
    scale: Float[Tensor, "B T H"] | None


def recurrent(
    tokens: Tokens, *, memory: Memory, state: MemoryState, resets: Bool[Tensor, "B T"] | None
) -> tuple[Float[Tensor, "B T H V"], MemoryState]:
    """The definition, one step at a time. Every other form is judged against this one."""
    rule, init = memory.rule, pack(memory.init)
    start, now, S, position, *window = state
    ys: list[Tensor] = []
    for t, reset in enumerate(as_resets(resets, tokens.q).unbind(1)):
        q, *heard, rate, decay = (x[:, t] for x in tokens[:7])
        m, scale = (None if x is None else x[:, t, :, None] for x in tokens[7:])
        start, now = (torch.where(reset[:, None, None], init, a) for a in (start, now))
        S = _emptied(S, reset)
        position = position.masked_fill(reset, 0)
        window = [
            torch.cat([_emptied(old, reset), new[:, None]], 1)
            for old, new in zip(window, heard, strict=True)
        ]
        heard = [x.transpose(1, 2) for x in window]  # [B H window ...]
        factors = gradients(heard, linked(start, memory), memory)
        step = pack([x.mT @ error for x, error in factors])
        step = step if rule.orthogonalize else -rate[..., None] * step
        if m is not None:
            step = S = m * S + step
        if rule.orthogonalize:
            step = -rate[..., None] * orthogonal(step, memory)
        now = decay[..., None] * now + step
        seen = now if scale is None else start + scale * (now - start)
        ys.append(read(q[:, :, None], linked(seen, memory), memory)[:, :, 0])
        position = (position + 1) % rule.chunk
        done = (position == 0)[:, None, None]
        start, now = torch.where(done, seen, start), torch.where(done, seen, now)
        window = [x[:, 1:] for x in window]
    return torch.stack(ys, 1), MemoryState(start, now, S, position, *(x.clone() for x in window))


def _emptied(x: Tensor, where: Bool[Tensor, "B"]) -> Tensor:
    return x.masked_fill(where.reshape(-1, *(1,) * (x.ndim - 1)), 0.0)


def chunked(
    tokens: Tokens, *, memory: Memory, state: MemoryState, resets: Bool[Tensor, "B T"] | None
) -> tuple[Float[Tensor, "B T H V"], MemoryState]:
    """All tokens of a chunk at once, row by row where its chunks lie; the memory walks on.

    The steps of a chunk are sums of gradients at one memory, and what each read sees of them are
    numbers that no memory decides: they come first, for all chunks. A read then is attention over
    the chunk's gradients (TTT's dual form). Links and Newton-Schulz need every memory written out.
    """
    C, past = memory.rule.chunk, memory.rule.window - 1
    resets = as_resets(resets, tokens.q)
    chunks = _chunks(state.position, resets, C)
    before = zip(state[4:], tokens[1:5], strict=True)
    longer = [torch.cat([old, new], 1) for old, new in before]  # a token at [past + its time]
    segment = F.pad(resets.cumsum(1), (past, 0))
    keys, values, weights, thresholds = (_cut(x, chunks, past + C) for x in longer)
    # the window ends where the segment began; empty slots lie after the chunk's last token
    foreign = _cut(segment, chunks, past + C) != _cut(segment[:, past:], chunks, 1)
    late = torch.arange(past + C, device=resets.device) >= past + chunks.count.mT[..., None]
    weights = weights.masked_fill((foreign | late)[:, :, None], 0.0)
    parts = _coefficients(tokens, chunks, memory.rule)
    q, scale = _cut(tokens.q, chunks, C), None
    if tokens.scale is not None:
        scale = _cut(tokens.scale, chunks, C)[..., None]
    init, (start, now, S) = pack(memory.init), state[:3]
    ys: list[Tensor] = []
    for n, (fresh, done, count) in enumerate(
        zip(
            *(x.mT[..., None, None] for x in (chunks.fresh, chunks.done, chunks.count)), strict=True
        )
    ):
        start, now = (torch.where(fresh, init, a) for a in (start, now))
        S = S.masked_fill(fresh, 0.0)
        layers = linked(start, memory)
        factors = gradients((keys[n], values[n], weights[n], thresholds[n]), layers, memory)
        run = _dual if memory.rule.retention == "l2" and not memory.rule.orthogonalize else _written
        scale_n = None if scale is None else scale[n]
        y, now, S = run(q[n], factors, [x[n] for x in parts], scale_n, (start, now, S), memory)
        end = now
        if scale_n is not None:  # the last token's
            last = (count - 1).clamp(min=0)[..., None].expand(-1, scale_n.shape[1], 1, 1)
            end = start + scale_n.gather(2, last)[..., 0] * (now - start)
        start, now = torch.where(done, end, start), torch.where(done, end, now)
        ys.append(y)
    rows = torch.arange(len(resets), device=resets.device)[:, None]
    inside = torch.arange(resets.shape[1], device=resets.device) - chunks.begin.gather(
        1, chunks.home
    )
    y = torch.stack(ys).movedim((0, 2), (1, 3))[rows, chunks.home, inside]
    gone = segment[:, resets.shape[1] :] != segment[:, -1:]
    window = [
        x[:, resets.shape[1] :].masked_fill(gone.reshape(*gone.shape, *(1,) * (x.ndim - 2)), 0.0)
        for x in longer
    ]
    position = (positions(state.position, resets)[:, -1] + 1) % C
    return y, MemoryState(start, now, S, position, *window)


class _Chunks(NamedTuple):
    """Where each row's chunks lie in this stretch: N of them, those a row does not need empty."""

    begin: Int[Tensor, "B N"]
    """Its first token."""
    count: Int[Tensor, "B N"]
    """Its tokens, 0 ... C."""
    fresh: Bool[Tensor, "B N"]
    """Starts with a reset."""
    done: Bool[Tensor, "B N"]
    """Ends with the C-th token of a chunk."""
    home: Int[Tensor, "B T"]
    """The chunk of each token."""


def _chunks(position: Int[Tensor, "B"], resets: Bool[Tensor, "B T"], chunk: int) -> _Chunks:
    B, T = resets.shape
    place, time = positions(position, resets) % chunk, torch.arange(T, device=resets.device)
    home = ((place == 0) | (time == 0)).cumsum(1) - 1
    # a graph cannot depend on data; there resets have gone to `recurrent`, and the rest is bounded
    whole = torch.compiler.is_compiling()
    N = (chunk + T - 2) // chunk + 1 if whole else int(home.max()) + 1
    edges = torch.full((B, N + 1), T, device=resets.device)
    edges = edges.scatter_reduce(1, home, time.expand(B, T), "amin")
    begin, count = edges[:, :-1], edges.diff(dim=1)
    at = begin.clamp(max=T - 1)
    fresh = resets.gather(1, at) & (count > 0)
    done = (place.gather(1, at) + count == chunk) & (count > 0)
    return _Chunks(begin, count, fresh, done, home)


def _cut(x: Shaped[Tensor, "B S *rest"], chunks: _Chunks, length: int) -> Tensor:
    """Each chunk's tokens, `length` on from its first: [N B length], or [N B H length ...]."""
    slots = torch.arange(length, device=x.device)
    index = (chunks.begin[..., None] + slots).clamp(max=x.shape[1] - 1)
    cut = x[torch.arange(len(x), device=x.device)[:, None, None], index].transpose(0, 1)
    return cut if x.ndim == 2 else cut.transpose(2, 3)


def _coefficients(tokens: Tokens, chunks: _Chunks, rule: Rule) -> list[Float[Tensor, "N B H C _"]]:
    """What S and A after each token hold of S and A before the chunk and of its E gradients.

    S of (S, gradients) and A of (A, S, gradients); orthogonalized, A of (A, each token's NS(S)).
    """
    C, past = rule.chunk, rule.window - 1
    rate, decay = (_cut(x, chunks, C) for x in (tokens.rate, tokens.decay))
    slot = torch.arange(past + C, device=rate.device)
    live = (slot[:C] < chunks.count.mT[..., None])[:, :, None]  # [N B 1 C]
    rate, decay = rate.masked_fill(~live, 0.0), decay.masked_fill(~live, 1.0)
    distance = slot[:C, None] + past - slot
    heard = (distance >= 0) & (distance <= past) & live[..., None]
    heard = heard.to(rate.dtype).expand(*rate.shape, -1)
    step = heard if rule.orthogonalize else -rate[..., None] * heard
    if tokens.momentum is None:
        S = F.pad(step, (1, 0))
    else:
        m = _cut(tokens.momentum, chunks, C).masked_fill(~live, 1.0)
        S = _scan(m, F.pad(step, (1, 0)))
    if rule.orthogonalize:
        return [S, _scan(decay, F.pad(torch.diag_embed(-rate), (1, 0)))]
    return [S, _scan(decay, F.pad(S * live[..., None], (1, 0)))]


def _scan(a: Float[Tensor, "N B H C"], b: Float[Tensor, "N B H C R"]) -> Tensor:
    """h = a h + b, from 1 in the first place."""
    b = b.flatten(0, 2)
    start = F.pad(torch.ones_like(b[:, 0, :1]), (0, b.shape[-1] - 1))
    h, _ = linear_scan(a.flatten(0, 2)[..., None].expand_as(b), b, state=start)
    return h.unflatten(0, a.shape[:3])


_Walk = tuple[Tensor, Tensor, Tensor]


def _dual(
    q: Float[Tensor, "B H C K"],
    factors: Factors,
    parts: Sequence[Tensor],
    scale: Float[Tensor, "B H C 1"] | None,
    memories: _Walk,
    memory: Memory,
) -> _Walk:
    """No memory but the last one is ever written out."""
    of_S, of_A = parts
    starts, nows, Ss = (unpacked(a, memory) if a.shape[-1] else [] for a in memories)
    x, z = q, q
    for n, (inputs, errors) in enumerate(factors):
        x = fitted(z if n == 0 else between(z), inputs.shape[-1])
        z = of_A[..., :1] * (x @ nows[n]) + (x @ inputs.mT * of_A[..., 2:]) @ errors
        if Ss:
            z = z + of_A[..., 1:2] * (x @ Ss[n])
        if scale is not None:
            old = x @ starts[n]
            z = old + scale * (z - old)
    y = finish(q, z, memory)
    _, now, S = memories
    end = of_A[:, :, -1, None]  # [B H 1 R]
    last = end[..., 0] * now + _weighed(factors, end[..., 2:])[:, :, 0]
    if Ss:
        last = last + end[..., 1] * S
        end = of_S[:, :, -1, None]
        S = end[..., 0] * S + _weighed(factors, end[..., 1:])[:, :, 0]
    return y, last, S


def _written(
    q: Float[Tensor, "B H C K"],
    factors: Factors,
    parts: Sequence[Tensor],
    scale: Float[Tensor, "B H C 1"] | None,
    memories: _Walk,
    memory: Memory,
) -> _Walk:
    """Every token's memory written out, [B H C P]."""
    of_S, of_A = parts
    start, now, S = (a[:, :, None] for a in memories)
    if memory.rule.orthogonalize:
        steps = _weighed(factors, of_S[..., 1:])
        if S.shape[-1]:
            steps = steps + of_S[..., :1] * S
        every = of_A[..., :1] * now + of_A[..., 1:] @ orthogonal(steps, memory)
    else:
        every = of_A[..., :1] * now + _weighed(factors, of_A[..., 2:])
        steps = S
        if S.shape[-1]:
            every = every + of_A[..., 1:2] * S
            end = of_S[:, :, -1:]
            steps = end[..., :1] * S + _weighed(factors, end[..., 1:])
    seen = every if scale is None else start + scale * (every - start)
    y = read(q[..., None, :], linked(seen, memory), memory)[..., 0, :]
    return y, every[:, :, -1], (steps if S.shape[-1] else S)[:, :, -1]


def _weighed(factors: Factors, weights: Float[Tensor, "B H C E"]) -> Float[Tensor, "B H C P"]:
    """Sums of the gradients of all E tokens."""
    sums = [
        (weights[..., None, :] * x.mT[:, :, None]) @ errors[:, :, None] for x, errors in factors
    ]
    return pack(sums)


FORMS: Mapping[str, Callable[..., tuple[Tensor, MemoryState]]] = MappingProxyType(
    {"recurrent": recurrent, "chunked": chunked}
)


def test_time_scan(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    init: Sequence[Float[Tensor, "H _ _"]],
    rate: Float[Tensor, "B T H"],
    rule: Rule,
    log_decay: Float[Tensor, "B T H"] | None = None,
    momentum: Float[Tensor, "B T H"] | None = None,
    weight: Float[Tensor, "B T H"] | None = None,
    threshold: Float[Tensor, "B T H"] | None = None,
    scale: Float[Tensor, "B T H"] | None = None,
    norm: tuple[Float[Tensor, "H V"], Float[Tensor, "H V"]] | None = None,
    state: MemoryState | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B T H V"], MemoryState]:
    """Train a memory on keys and values and read it at the queries, both token by token.

    `init` holds the layers' A before the first token, [H, inputs, outputs] each; `norm` the weight
    and bias of the residual norm. `weight` (1) and `threshold` belong to a token's loss. The state
    stays float32 or wider, y has v's dtype, and `form="auto"` never changes the result.
    """
    _check(q, k, v, init, norm, rule)
    given = {"rate": rate, "log_decay": log_decay, "momentum": momentum, "weight": weight}
    given |= {"threshold": threshold, "scale": scale}
    for name, x in given.items():
        if x is not None and x.shape != q.shape[:3]:
            raise ValueError(
                f"test_time_scan: want {name} {tuple(q.shape[:3])}, got {tuple(x.shape)}"
            )
    if (rule.loss == "huber") != (threshold is not None):
        raise ValueError('test_time_scan: want a threshold with the loss "huber", and only there')
    older = None if state is None else state.now
    size = sum(w[0].numel() for w in init)
    dtype = as_state(older, (len(q), q.shape[2], size), q, k, v, *init, *given.values()).dtype
    one = torch.ones_like(rate, dtype=dtype)
    wide = {name: None if x is None else x.to(dtype) for name, x in given.items()}
    q, k, x = (x.to(dtype) for x in (q, k, v))
    decay = one if log_decay is None else log_decay.to(dtype).exp()
    weight, threshold = (one if x is None else x.to(dtype) for x in (weight, threshold))
    tokens = Tokens(
        q, k, x, weight, threshold, rate.to(dtype), decay, wide["momentum"], wide["scale"]
    )
    layers = tuple(w.to(dtype) for w in init)
    norm = None if norm is None else (norm[0].to(dtype), norm[1].to(dtype))
    memory = Memory(layers, norm, rule)
    fresh = init_state(len(q), layers, rule, keys=q.shape[-1], momentum=momentum is not None)
    state = fresh if state is None else _fitting(state, fresh)
    if q.shape[1] == 0:
        return v, state
    if form == "auto":
        form = "chunked" if min(rule.chunk, q.shape[1]) > 1 else "recurrent"
        if resets is not None and torch.compiler.is_compiling():
            form = "recurrent"  # how many chunks there are would depend on data
    run = lookup(FORMS, form, kind="form of test_time_scan")
    y, state = run(tokens, memory=memory, state=state, resets=resets)
    return y.to(v.dtype), state


def init_state(
    batch: int,
    init: Sequence[Float[Tensor, "H _ _"]],
    rule: Rule,
    *,
    keys: int,
    momentum: bool,
) -> MemoryState:
    """The state before the first token, in the dtype and on the device of `init`."""
    flat = pack(init).expand(batch, -1, -1)
    heads, values, past = len(init[0]), init[-1].shape[-1], rule.window - 1
    return MemoryState(
        flat,
        flat,
        flat.new_zeros(batch, heads, flat.shape[-1] if momentum else 0),
        torch.zeros(batch, dtype=torch.int64, device=flat.device),
        flat.new_zeros(batch, past, heads, keys),
        flat.new_zeros(batch, past, heads, values),
        flat.new_zeros(batch, past, heads),
        flat.new_zeros(batch, past, heads),
    )


def _fitting(state: MemoryState, like: MemoryState) -> MemoryState:
    for name, got, want in zip(MemoryState._fields, state, like, strict=True):
        if got.shape != want.shape:
            raise ValueError(f"state.{name}: want {tuple(want.shape)}, got {tuple(got.shape)}")
    return MemoryState(*(x.to(y.dtype) for x, y in zip(state, like, strict=True)))


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    init: Sequence[Tensor],
    norm: tuple[Tensor, Tensor] | None,
    rule: Rule,
) -> None:
    sizes = [q.shape[-1], *(w.shape[-1] for w in init)]
    fits = (
        q.ndim == 4
        and k.shape == q.shape
        and v.shape[:-1] == q.shape[:-1]
        and len(init) > 0
        and all(w.ndim == 3 and len(w) == q.shape[2] for w in init)
        and all(w.shape[1] - size in (0, 1) for w, size in zip(init, sizes, strict=False))
        and sizes[-1] == v.shape[-1]
    )
    if not fits:
        raise ValueError(
            "test_time_scan: want q, k [B T H K], v [B T H V] and layers [H I O] from K to V, each "
            "with as many inputs as the one before has outputs, or one more; got "
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, "
            f"init {[tuple(w.shape) for w in init]}"
        )
    shapes = None if norm is None else [tuple(p.shape) for p in norm]
    if shapes is not None and (
        shapes != [(*q.shape[2:3], v.shape[-1])] * 2 or sizes[0] < sizes[-1]
    ):
        raise ValueError(
            "test_time_scan: want norm (weight, bias) [H V] and K at least V for its residual; got "
            f"norm {shapes}, K={sizes[0]}, V={sizes[-1]}"
        )
