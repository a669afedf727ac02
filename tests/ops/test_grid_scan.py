"""The source-transition-mark recurrence on a grid: laws along the rows, what its modes bound."""

import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.grid_scan import FORMS, grid_scan

B, C, H, K, V = 2, 3, 2, 3, 4
every_form = pytest.mark.parametrize("form", FORMS)
faster = pytest.mark.parametrize("form", [form for form in FORMS if form != "recurrent"])


def make(R, C=C, dtype=torch.float64):
    q, k = (torch.randn(B, R, C, H, K, dtype=dtype) for _ in "qk")
    v = torch.randn(B, R, C, H, V, dtype=dtype)
    source, mark = (torch.randn(B, R, C, H, 2, dtype=dtype) for _ in "sm")
    transition = torch.randn(B, R, C, H, 2, 2, dtype=dtype) / 2
    direct = torch.randn(B, R, C, H, dtype=dtype)
    state = torch.randn(B, C, H, K, V, dtype=dtype)
    return (q, k, v, source, transition, mark, direct), state, torch.rand(B, R) < 0.2


def step(form):
    def run(inputs, state, resets):
        q, k, v, source, transition, mark, direct = inputs
        gates = {"source": source, "transition": transition, "mark": mark, "direct": direct}
        return grid_scan(q, k, v, **gates, state=state, resets=resets, form=form)

    return run


@faster
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("R", "columns"), [(0, 3), (1, 1), (1, 4), (5, 1), (4, 6), (16, 16)])
def test_forms_law(form, dtype, R, columns):
    inputs, state, resets = make(R, columns, dtype)
    forms_law(step(form), step("recurrent"), inputs, state, resets=resets)


@every_form
def test_laws_along_the_rows(form):
    inputs, state, resets = make(6)
    for cuts in ([0, 4], [2, 2, 6], list(range(1, 6))):
        split_law(step(form), inputs, state, cuts, resets=resets)
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 3)


@every_form
def test_gradcheck(form):
    inputs, state, _ = make(3, 2)
    leaf = [x[:1].clone().requires_grad_() for x in (*inputs, state)]
    resets = torch.tensor([[False, False, True]])
    run = lambda *x: step(form)(x[:7], x[7], resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@every_form
def test_one_row_is_a_gated_linear_attention_read_before_it_is_written(form):
    inputs, _, _ = make(1, 9)
    q, k, v, source, transition, mark, direct = inputs
    y, _ = step(form)(inputs, None, None)
    E, want = torch.zeros(B, H, K, V).double(), []
    for t in range(9):
        at = lambda x, t=t: x[:, 0, t]  # noqa: E731
        read = torch.einsum("bhk,bhkv->bhv", at(q), E) * at(mark)[..., :1]
        want.append(read + at(direct)[..., None] * (at(q) * at(k)).sum(-1, True) * at(v))
        write = at(k)[..., None] * at(v)[..., None, :]
        E = at(transition)[..., 0, 0, None, None] * E + at(source)[..., :1, None] * write
    assert_near(y[:, 0], torch.stack(want, 1), what="one row")


def corner(R, transition):
    """The edges that leave an R by R grid downwards, of a write at its first node."""
    ones = torch.ones(1, R, R, 1, 1)
    source = torch.zeros(1, R, R, 1, 2)
    source[:, 0, 0] = 0.5
    gates = {"source": source, "mark": torch.ones(1, R, R, 1, 2), "transition": transition}
    y, down = grid_scan(ones, ones, ones, **gates, form="rowwise")
    return y, down


def test_p_mode_stays_bounded_at_distance_512_where_a_free_network_explodes():
    R = 257  # from corner to corner 512 steps
    angle = torch.rand(1, R, R, 1, 2)
    y, down = corner(R, torch.stack([angle, 1 - angle], -2))  # what leaves an edge sums up to 1
    assert 0 < y.max() <= 1
    assert 0 < down.sum() <= 1  # what is left of the write, spread over the edges of one diagonal
    free = torch.rand(1, R, R, 1, 2, 2) * 0.5 + 0.5  # each of them below 1, their sums are not
    y, _ = corner(R, free)
    assert not y[0, -1, -1].isfinite().all() or y[0, -1, -1].max() > 1e30


def test_d_mode_carries_a_write_to_the_far_corner_undiminished():
    """T_dl = 0: down the first column and then to the right, one path to every node."""
    R = 257
    t = torch.zeros(1, R, R, 1, 2, 2)
    t[..., 0, 0] = t[..., 0, 1] = t[..., 1, 1] = 1
    y, _ = corner(R, t)
    assert y[0, -1, -1].item() == pytest.approx(0.5)
    assert y.max() <= 1


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (q, k, v, source, transition, mark, _), *_ = make(2)
    gates = {"source": source, "mark": mark, "transition": transition}
    with pytest.raises(ValueError, match=r"mark \(2, 2, 3, 2\)"):
        grid_scan(q, k, v, **(gates | {"mark": mark[..., 0]}))
    with pytest.raises(ValueError, match="Did you mean 'rowwise'"):
        grid_scan(q, k, v, **gates, form="rowise")
    with pytest.raises(ValueError, match="state: want"):
        grid_scan(q, k, v, **gates, state=torch.zeros(2, 3, 2, 3, 5).double())
