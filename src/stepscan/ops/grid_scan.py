r"""The source-transition-mark recurrence of pLSTM on a grid of rows and columns.

The memory lives on the edges of the grid. Each node reads the two edges that come into it, from
the left (l) and from above (u), and feeds the two that leave it, to the right (r) and down (d):

    y     = (mark_l E_l + mark_u E_u)^T q + direct (q . k) v          E: [K, V] on every edge
    E_r   = T_rl E_l + T_ru E_u + source_r k v^T
    E_d   = T_dl E_l + T_du E_u + source_d k v^T

`source` and `mark` are [B, R, C, H, 2], in the order (right, down) and (left, up); `transition` is
[B, R, C, H, 2, 2], out by in. Two ways to keep |E| from growing with the distance: what leaves an
edge sums up to 1 at the most, T_rl + T_dl <= 1 and T_ru + T_du <= 1 (P, directed propagation); or
T_dl = 0 or T_ru = 0 and all others at most 1, so that one path leads from a node to another (D,
distribution). Nothing here enforces either.

Rows are the time of the other laws: the state is what goes down from the last row, [B, C, H, K, V],
and a reset empties it before a row. Source: pLSTM (arXiv:2506.11997), scalar gates per head.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.names import lookup
from stepscan.ops.arguments import as_resets, as_state
from stepscan.ops.linear_scan import linear_scan


def recurrent(
    q: Float[Tensor, "B R C H K"],
    k: Float[Tensor, "B R C H K"],
    v: Float[Tensor, "B R C H V"],
    *,
    source: Float[Tensor, "B R C H 2"],
    transition: Float[Tensor, "B R C H 2 2"],
    mark: Float[Tensor, "B R C H 2"],
    direct: Float[Tensor, "B R C H"],
    state: Float[Tensor, "B C H K V"],
    resets: Bool[Tensor, "B R"],
) -> tuple[Float[Tensor, "B R C H V"], Float[Tensor, "B C H K V"]]:
    """The definition, node by node. Every other form is judged against this one."""
    (R, C), wide = q.shape[1:3], (..., None, None)
    rows: list[Tensor] = []
    for i in range(R):
        left = torch.zeros_like(state[:, 0])
        reads, downs = [], []
        for j in range(C):
            up = state[:, j].masked_fill(resets[:, i, None, None, None], 0.0)
            q_n, k_n, v_n, s, t, m, d = (
                x[:, i, j] for x in (q, k, v, source, transition, mark, direct)
            )
            read = m[..., 0][wide] * left + m[..., 1][wide] * up
            near = d * (q_n * k_n).sum(-1)
            reads.append(torch.einsum("bhk,bhkv->bhv", q_n, read) + near[..., None] * v_n)
            written = k_n[..., None] * v_n[..., None, :]
            right, down = (
                t[..., out, 0][wide] * left
                + t[..., out, 1][wide] * up
                + s[..., out][wide] * written
                for out in (0, 1)
            )
            left = right
            downs.append(down)
        state = torch.stack(downs, 1)
        rows.append(torch.stack(reads, 1))
    return torch.stack(rows, 1), state


def rowwise(
    q: Float[Tensor, "B R C H K"],
    k: Float[Tensor, "B R C H K"],
    v: Float[Tensor, "B R C H V"],
    *,
    source: Float[Tensor, "B R C H 2"],
    transition: Float[Tensor, "B R C H 2 2"],
    mark: Float[Tensor, "B R C H 2"],
    direct: Float[Tensor, "B R C H"],
    state: Float[Tensor, "B C H K V"],
    resets: Bool[Tensor, "B R"],
) -> tuple[Float[Tensor, "B R C H V"], Float[Tensor, "B C H K V"]]:
    """Row by row, each a few products with small matrices; only what goes down is carried."""
    rows = _rows(source, transition, mark, resets)
    Q, K, U = (x.transpose(2, 3) for x in (q, k, v))  # [B R H C .]
    near = (Q @ K.mT * (rows.read_writes + torch.diag_embed(direct.transpose(2, 3)))) @ U
    up, ys = state.transpose(1, 2), []  # [B H C K V]
    parts = (rows.pass_up, rows.pass_writes, rows.read_up, Q, K, U)
    for down, write, seen, q_i, k_i, v_i in zip(*(x.unbind(1) for x in parts), strict=True):
        read = (seen @ up.flatten(3)).view_as(up)
        ys.append(torch.einsum("bhck,bhckv->bhcv", q_i, read))
        written = (k_i[..., None] * v_i[..., None, :]).flatten(3)  # [B H C KV]
        up = (down @ up.flatten(3) + write @ written).view_as(up)
    return (torch.stack(ys, 1) + near).transpose(2, 3), up.transpose(1, 2)


def parallel(
    q: Float[Tensor, "B R C H K"],
    k: Float[Tensor, "B R C H K"],
    v: Float[Tensor, "B R C H V"],
    *,
    source: Float[Tensor, "B R C H 2"],
    transition: Float[Tensor, "B R C H 2 2"],
    mark: Float[Tensor, "B R C H 2"],
    direct: Float[Tensor, "B R C H"],
    state: Float[Tensor, "B C H K V"],
    resets: Bool[Tensor, "B R"],
) -> tuple[Float[Tensor, "B R C H V"], Float[Tensor, "B C H K V"]]:
    """The gates alone give a matrix from node to node; with it, y is one masked attention."""
    (B, R, C, H, _), V = q.shape, v.shape[-1]
    rows = _rows(source, transition, mark, resets)
    # What the edges into a row hold: first of those into the first row, then of each node above.
    reach = torch.eye(C, dtype=q.dtype, device=q.device).expand(B, H, C, C)
    seen: list[Tensor] = []
    for i, row in enumerate(zip(*(x.unbind(1) for x in rows), strict=True)):
        down, write, see, own = row
        seen.append(F.pad(torch.cat([see @ reach, own], -1), (0, (R - 1 - i) * C)))
        reach = torch.cat([down @ reach, write], -1)
    matrix = torch.stack(seen, 2).flatten(2, 3)  # [B H n C+m]
    above, inside = matrix.split([C, R * C], -1)
    Q, K, U = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))  # [B H n .]
    enters = state.transpose(1, 2)  # [B H C K V]
    inside = inside + torch.diag_embed(direct.flatten(1, 2).transpose(1, 2))
    y = (Q @ K.mT * inside) @ U
    read = (Q @ enters.movedim(2, 3).flatten(3)).unflatten(3, (C, V))  # [B H n C V]
    y = y + (above[..., None, :] @ read).squeeze(3)
    from_above, from_nodes = reach.split([C, R * C], -1)
    written = (K[..., None] * U[..., None, :]).flatten(3)
    down = from_nodes @ written + from_above @ enters.flatten(3)
    return y.transpose(1, 2).view(B, R, C, H, V), down.view_as(enters).transpose(1, 2)


class Rows(NamedTuple):
    """What a row does, as matrices [B R H C C] from the edges above it and from its own writes."""

    pass_up: Tensor
    """Edges above to edges below."""
    pass_writes: Tensor
    """Writes to edges below."""
    read_up: Tensor
    """Edges above to reads."""
    read_writes: Tensor
    """Writes to reads."""


def _rows(
    source: Float[Tensor, "B R C H 2"],
    transition: Float[Tensor, "B R C H 2 2"],
    mark: Float[Tensor, "B R C H 2"],
    resets: Bool[Tensor, "B R"],
) -> Rows:
    """All rows at once: inside of one, the edges to the right are a linear scan."""
    B, R, C, H, _ = source.shape
    eye = torch.eye(C, dtype=source.dtype, device=source.device)
    kept = transition[..., 0, 0, None].expand(B, R, C, H, C).reshape(B * R, C, H * C)
    given = eye[:, None].expand(B * R, C, H, C).flatten(2)
    right = linear_scan(kept, given)[0].view(B, R, C, H, C).transpose(2, 3)
    left = F.pad(right[..., :-1, :], (0, 0, 1, 0))  # [B R H C C], what comes from the left
    source, mark = source.transpose(2, 3), mark.transpose(2, 3)
    across, down, turn = (  # [B R H C]
        transition[..., i, j].transpose(2, 3) for i, j in ((1, 0), (1, 1), (0, 1))
    )
    turned = left * turn[..., None, :]  # from above, to the right and on
    written = left * source[..., None, :, 0]
    open_ = ~resets[:, :, None, None, None]
    return Rows(
        (across[..., None] * turned + torch.diag_embed(down)) * open_,
        across[..., None] * written + torch.diag_embed(source[..., 1]),
        (mark[..., :1] * turned + torch.diag_embed(mark[..., 1])) * open_,
        mark[..., :1] * written,
    )


FORMS: Mapping[str, Callable[..., tuple[Tensor, Tensor]]] = MappingProxyType(
    {"recurrent": recurrent, "rowwise": rowwise, "parallel": parallel}
)


def grid_scan(
    q: Float[Tensor, "B R C H K"],
    k: Float[Tensor, "B R C H K"],
    v: Float[Tensor, "B R C H V"],
    *,
    source: Float[Tensor, "B R C H 2"],
    transition: Float[Tensor, "B R C H 2 2"],
    mark: Float[Tensor, "B R C H 2"],
    direct: Float[Tensor, "B R C H"] | None = None,
    state: Float[Tensor, "B C H K V"] | None = None,
    resets: Bool[Tensor, "B R"] | None = None,
    form: str = "auto",
) -> tuple[Float[Tensor, "B R C H V"], Float[Tensor, "B C H K V"]]:
    """What every node reads, and what goes down from the last row; the caller scales q.

    The state stays float32 or wider, y has v's dtype, and `form="auto"` picks by size, never
    changing the result.
    """
    _check(q, k, v, source, transition, mark, direct)
    resets = as_resets(resets, q)
    B, R, C, H, K = q.shape
    gates = (source, transition, mark, direct)
    state = as_state(state, (B, C, H, K, v.shape[-1]), q, k, v, *gates)
    form = _pick(R, C, K * v.shape[-1]) if form == "auto" else form
    run = lookup(FORMS, form, kind="form of grid_scan")
    if R == 0 or C == 0:
        return v, state
    direct = q.new_zeros(q.shape[:4]) if direct is None else direct
    parts = (x.to(state.dtype) for x in (q, k, v))
    source, transition, mark, direct = (
        x.to(state.dtype) for x in (source, transition, mark, direct)
    )
    gated = {"source": source, "transition": transition, "mark": mark, "direct": direct}
    y, state = run(*parts, **gated, state=state, resets=resets)
    return y.to(v.dtype), state


def _pick(R: int, C: int, memory: int) -> str:
    """Row by row the memory of an edge is moved, in the matrix a number per node and node."""
    return "parallel" if C * (R + 1) <= memory else "rowwise"


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    source: Tensor,
    transition: Tensor,
    mark: Tensor,
    direct: Tensor | None,
) -> None:
    nodes = q.shape[:4]
    fits = q.ndim == v.ndim == 5 and k.shape == q.shape and v.shape[:4] == nodes
    fits = fits and source.shape == mark.shape == (*nodes, 2)
    fits = fits and transition.shape == (*nodes, 2, 2)
    if not fits or (direct is not None and direct.shape != nodes):
        raise ValueError(
            "grid_scan: want q, k [B R C H K], v [B R C H V], source, mark [B R C H 2], transition "
            f"[B R C H 2 2], direct [B R C H]; got q {tuple(q.shape)}, k {tuple(k.shape)}, v "
            f"{tuple(v.shape)}, source {tuple(source.shape)}, mark {tuple(mark.shape)}, transition "
            f"{tuple(transition.shape)}, direct {None if direct is None else tuple(direct.shape)}"
        )
