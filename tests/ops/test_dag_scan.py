"""The source-transition-mark recurrence on graphs: its forms, the grid as a graph, its modes."""

import pytest
import torch
from laws import assert_near

from stepscan.ops.dag_scan import FORMS, dag_scan, pairs_of
from stepscan.ops.grid_scan import grid_scan

B, H, K, V = 2, 2, 3, 4
every_form = pytest.mark.parametrize("form", FORMS)


def graph(nodes, chance=0.3):
    """A random graph, its edges in no order, some nodes without any."""
    edges = (torch.rand(nodes, nodes) < chance).triu(1).nonzero().T
    return edges[:, torch.randperm(edges.shape[1])]


def make(edges, nodes, dtype=torch.float64):
    E, P = edges.shape[1], pairs_of(edges).shape[1]
    q, k = (torch.randn(B, nodes, H, K, dtype=dtype) for _ in "qk")
    gates = {"source": torch.randn(B, E, H, dtype=dtype), "mark": torch.randn(B, E, H, dtype=dtype)}
    gates |= {"transition": torch.randn(B, P, H, dtype=dtype) / 3}
    gates |= {"direct": torch.randn(B, nodes, H, dtype=dtype)}
    return [q, k, torch.randn(B, nodes, H, V, dtype=dtype)], gates


def found(parts, gates, edges, form):
    """Outputs and the gradients of one loss."""
    leaf = [x.clone().requires_grad_() for x in (*parts, *gates.values())]
    y = dag_scan(*leaf[:3], edges=edges, **dict(zip(gates, leaf[3:], strict=True)), form=form)
    loss = (y * torch.arange(y.numel()).to(y).cos().view_as(y)).sum()
    return y, torch.autograd.grad(loss, leaf, materialize_grads=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("nodes", "chance"), [(1, 0.0), (5, 0.0), (6, 1.0), (12, 0.3)])
def test_the_triangular_system_equals_the_node_by_node_recurrence(nodes, chance, dtype):
    edges = graph(nodes, chance)
    parts, gates = make(edges, nodes, dtype)
    want = found(parts, gates, edges, "recurrent")
    assert_near(found(parts, gates, edges, "parallel"), want, what="form")


@every_form
def test_a_node_sees_its_ancestors_only(form):
    nodes = 10
    edges = graph(nodes)
    parts, gates = make(edges, nodes)
    v = parts[2].requires_grad_()
    y = dag_scan(*parts, edges=edges, **gates, form=form)
    reaches = torch.eye(nodes, dtype=torch.bool)
    for m in range(nodes):  # in topological order
        for parent in edges[0][edges[1] == m]:
            reaches[m] |= reaches[parent]
    for n in range(nodes):
        (back,) = torch.autograd.grad(y[:, n].sum(), v, retain_graph=True)
        assert torch.equal(back.abs().sum((0, 2, 3)) > 0, reaches[n])


@every_form
def test_a_grid_is_a_graph(form):
    R, C = 4, 3
    node = torch.arange(R * C).view(R, C)
    right = torch.stack([node[:, :-1], node[:, 1:]]).flatten(1)
    down = torch.stack([node[:-1], node[1:]]).flatten(1)
    edges, E = torch.cat([right, down], 1), right.shape[1]
    parts, gates = make(edges, R * C)
    pairs = pairs_of(edges)
    way = (torch.arange(edges.shape[1]) >= E).long()  # 0 to the right, 1 down
    source, mark = (torch.zeros(B, R * C, H, 2).double() for _ in "sm")
    transition = torch.zeros(B, R * C, H, 2, 2).double()
    for e, (start, end) in enumerate(edges.T.tolist()):
        source[:, start, :, way[e]] = gates["source"][:, e]
        mark[:, end, :, way[e]] = gates["mark"][:, e]
    for p, (before, after) in enumerate(pairs.T.tolist()):
        transition[:, edges[1, before], :, way[after], way[before]] = gates["transition"][:, p]
    fold = lambda x: x.unflatten(1, (R, C))  # noqa: E731
    want, _ = grid_scan(
        *map(fold, parts), source=fold(source), mark=fold(mark), transition=fold(transition),
        direct=fold(gates["direct"]), form="recurrent",
    )  # fmt: skip
    assert_near(dag_scan(*parts, edges=edges, **gates, form=form), want.flatten(1, 2), what="grid")


def chain_of_diamonds(count):
    """Each node forks and joins: 2^count paths from the first node to the last."""
    diamond = (0, 1), (0, 2), (1, 3), (2, 3)
    edges = [(3 * i + a, 3 * i + b) for i in range(count) for a, b in diamond]
    return torch.tensor(edges).T, 3 * count + 1


def test_p_mode_stays_bounded_where_paths_multiply():
    edges, nodes = chain_of_diamonds(200)
    pairs = pairs_of(edges)
    ones = torch.ones(1, nodes, 1, 1).double()
    follows = torch.bincount(pairs[0], minlength=edges.shape[1])  # how many edges follow each
    split = (1.0 / follows[pairs[0]])[None, :, None].double()
    source = torch.zeros(1, edges.shape[1], 1).double()
    source[:, edges[0] == 0] = 0.5
    gates = {"edges": edges, "source": source, "mark": torch.ones_like(source)}
    y = dag_scan(ones, ones, ones, transition=split, **gates)
    assert y[0, -1].item() == pytest.approx(1)
    free = dag_scan(ones, ones, ones, transition=torch.ones_like(split), **gates)
    assert free[0, -1] > 1e50


@pytest.mark.plain
def test_errors_say_what_to_fix():
    edges = graph(6)
    parts, gates = make(edges, 6)
    with pytest.raises(ValueError, match="topological order"):
        dag_scan(*parts, edges=edges.flip(0), **gates)
    with pytest.raises(ValueError, match="want mark"):
        dag_scan(*parts, edges=edges, **(gates | {"mark": gates["source"][:, 1:]}))
    with pytest.raises(ValueError, match="Did you mean 'parallel'"):
        dag_scan(*parts, edges=edges, **gates, form="paralel")
