r"""The source-transition-mark recurrence of pLSTM on any directed acyclic graph.

The memory lives on the edges; e' -> e says that edge e leaves the node that e' comes into:

    E_e = sum_{e' -> e} T_{e'e} E_e' + source_e k_m v_m^T                e leaves node m
    y_n = (sum_{e into n} mark_e E_e)^T q_n + direct_n (q_n . k_n) v_n

`edges` is [2, E] of nodes, (from, to), each from a lower number to a higher: nodes are in
topological order, the same graph for all rows. `pairs` (see `pairs_of`) is [2, P], the edges
(e', e) that follow each other, and `transition` [B, P, H] has a number for each. The memory stays
bounded if what leaves an edge sums up to 1 at the most (P-mode), or if the pairs that are not 0 are
one path at the most from a node to another (D-mode). A graph is whole: there is no state that goes
on and there are no resets. Source: pLSTM (arXiv:2506.11997), scalar gates per head.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.names import lookup


def pairs_of(edges: Int[Tensor, "2 E"]) -> Int[Tensor, "2 P"]:
    """The edges that follow each other: the second leaves the node that the first comes into."""
    return (edges[1][:, None] == edges[0]).nonzero().T


def recurrent(
    q: Float[Tensor, "B N H K"],
    k: Float[Tensor, "B N H K"],
    v: Float[Tensor, "B N H V"],
    *,
    edges: Int[Tensor, "2 E"],
    pairs: Int[Tensor, "2 P"],
    source: Float[Tensor, "B E H"],
    transition: Float[Tensor, "B P H"],
    mark: Float[Tensor, "B E H"],
    direct: Float[Tensor, "B N H"],
) -> Float[Tensor, "B N H V"]:
    """The definition, node by node. The other form is judged against this one."""
    wide, ys = (..., None, None), []
    memory: dict[int, Tensor] = {}
    for n in range(q.shape[1]):
        read = torch.zeros_like(k[:, n, :, :, None] * v[:, n, :, None])
        for e in (edges[1] == n).nonzero().flatten().tolist():
            read = read + mark[:, e][wide] * memory[e]
        near = direct[:, n] * (q[:, n] * k[:, n]).sum(-1)
        ys.append(torch.einsum("bhk,bhkv->bhv", q[:, n], read) + near[..., None] * v[:, n])
        for e in (edges[0] == n).nonzero().flatten().tolist():
            memory[e] = source[:, e][wide] * k[:, n, :, :, None] * v[:, n, :, None]
            for p in (pairs[1] == e).nonzero().flatten().tolist():
                memory[e] = memory[e] + transition[:, p][wide] * memory[int(pairs[0, p])]
    return torch.stack(ys, 1)


def parallel(
    q: Float[Tensor, "B N H K"],
    k: Float[Tensor, "B N H K"],
    v: Float[Tensor, "B N H V"],
    *,
    edges: Int[Tensor, "2 E"],
    pairs: Int[Tensor, "2 P"],
    source: Float[Tensor, "B E H"],
    transition: Float[Tensor, "B P H"],
    mark: Float[Tensor, "B E H"],
    direct: Float[Tensor, "B N H"],
) -> Float[Tensor, "B N H V"]:
    """The line graph is a triangular system: solved once, it says what each node sees of each."""
    (B, N, H, _), E = q.shape, edges.shape[1]
    order = edges[0].argsort(stable=True)  # an edge that follows another leaves a later node
    rank = order.argsort()
    passed = q.new_zeros(B, H, E, E)
    passed[:, :, rank[pairs[1]], rank[pairs[0]]] = -transition.transpose(1, 2)
    own = torch.nn.functional.one_hot(edges[0][order], N).to(q.dtype)  # [E N]
    writes = own * source[:, order].transpose(1, 2)[..., None]  # [B H E N]
    held = torch.linalg.solve_triangular(passed, writes, upper=False, unitriangular=True)
    into = torch.nn.functional.one_hot(edges[1][order], N).to(q.dtype)
    matrix = (into * mark[:, order].transpose(1, 2)[..., None]).mT @ held  # [B H N N]
    matrix = matrix + torch.diag_embed(direct.transpose(1, 2))
    return torch.einsum("bnhk,bmhk,bhnm,bmhv->bnhv", q, k, matrix, v)


FORMS: Mapping[str, Callable[..., Tensor]] = MappingProxyType(
    {"recurrent": recurrent, "parallel": parallel}
)


def dag_scan(
    q: Float[Tensor, "B N H K"],
    k: Float[Tensor, "B N H K"],
    v: Float[Tensor, "B N H V"],
    *,
    edges: Int[Tensor, "2 E"],
    source: Float[Tensor, "B E H"],
    transition: Float[Tensor, "B P H"],
    mark: Float[Tensor, "B E H"],
    direct: Float[Tensor, "B N H"] | None = None,
    form: str = "auto",
) -> Float[Tensor, "B N H V"]:
    """What every node reads, in v's dtype; the caller scales q."""
    B, N, H, _ = q.shape
    if edges.shape[1] and not (0 <= edges).all() & (edges[0] < edges[1]).all() & (edges < N).all():
        raise ValueError(
            f"dag_scan: want edges from a lower to a higher of {N} nodes; number them in "
            "topological order"
        )
    pairs = pairs_of(edges)
    E, P = edges.shape[1], pairs.shape[1]
    for name, given, want in (
        ("source", source, (B, E, H)),
        ("mark", mark, (B, E, H)),
        ("transition", transition, (B, P, H)),
        ("direct", direct, (B, N, H)),
    ):
        if given is not None and given.shape != want:
            raise ValueError(f"dag_scan: want {name} {want}, got {tuple(given.shape)}")
    run = lookup(FORMS, "parallel" if form == "auto" else form, kind="form of dag_scan")
    direct = q.new_zeros(B, N, H) if direct is None else direct
    gates = {"source": source, "transition": transition, "mark": mark, "direct": direct}
    wide = torch.promote_types(q.dtype, torch.float32)
    parts = (x.to(wide) for x in (q, k, v))
    gates = {name: x.to(wide) for name, x in gates.items()}
    return run(*parts, edges=edges, pairs=pairs, **gates).to(v.dtype)
