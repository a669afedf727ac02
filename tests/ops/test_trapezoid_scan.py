import math

import pytest
import torch
from laws import causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.trapezoid_scan import FORMS, TrapezoidState, trapezoid_scan

B, H, K, V = 2, 2, 3, 5
every_form = pytest.mark.parametrize("form", FORMS)
every_rank = pytest.mark.parametrize("rank", [1, 3])


def make(T=40, rank=1, dtype=torch.float64, strength=1.0):
    q, k = (torch.randn(B, T, rank, H, K, dtype=dtype) for _ in "qk")
    v = torch.randn(B, T, rank, H, V, dtype=dtype)
    gates = (torch.rand(B, T, H, dtype=dtype) for _ in range(3))
    shapes = (B, H, K, V), (B, rank, H, K), (B, rank, H, V)
    state = TrapezoidState(*(torch.randn(s, dtype=dtype) for s in shapes))
    decay, early, late = gates
    return (q, k, v, -strength * decay, early, late), state, torch.rand(B, T) < 0.1


def step(form):
    def run(inputs, state, resets):
        q, k, v, g, early, late = inputs
        return trapezoid_scan(
            q, k, v, log_decay=g, early=early, late=late, state=state, resets=resets, form=form
        )

    return run


@every_rank
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("T", [0, 1, 2, 7, 64, 65])
def test_forms_law(rank, dtype, T):
    inputs, state, resets = make(T, rank, dtype)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)
    forms_law(step("chunked"), step("recurrent"), inputs, None, resets=resets)


@every_rank
@pytest.mark.parametrize("strength", [0.0, 20.0, 1e4])
def test_forms_law_for_any_decay(rank, strength):
    inputs, state, resets = make(rank=rank, strength=strength)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)


@every_form
@every_rank
def test_laws(form, rank):
    inputs, state, resets = make(20, rank)
    for cuts in ([0, 7], [3, 3, 9, 20], list(range(1, 20))):
        split_law(step(form), inputs, state, cuts, resets=resets)
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 9)


@every_form
def test_gradcheck(form):
    inputs, state, _ = make(6, 2)
    leaf = [x[:1].clone().requires_grad_() for x in (*inputs, *state)]
    resets = torch.tensor([[False, False, True, False, False, False]])

    def run(*x):
        y, state = step(form)(x[:6], TrapezoidState(*x[6:]), resets)
        return y, *state

    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@every_form
def test_rank_r_is_a_sum_over_pairs_of_one_write_and_one_read(form):
    """Each read of each write has a memory of rank 1 to itself; MIMO keeps one for all."""
    (q, k, v, *gates), _, resets = make(30, rank=3)
    y, state = step(form)((q, k, v, *gates), None, resets)
    one = lambda x, r: x[:, :, r : r + 1]  # noqa: E731
    want = [
        sum(
            step(form)((one(q, r), one(k, s), one(v, s), *gates), None, resets)[0] for s in range(3)
        )
        for r in range(3)
    ]
    torch.testing.assert_close(y, torch.cat(want, 2), atol=1e-10, rtol=0)
    single = step(form)((one(q, 0), one(k, 0), one(v, 0), *gates), None, resets)[1]
    assert state.memory.nbytes == single.memory.nbytes


def order(weight):
    """Of the error at the end of h' = -h + sin(3 t) on (0, 4), from the two finest of the steps."""
    errors = []
    for n in (400, 800):
        dt, t = 4 / n, torch.linspace(0, 4, n + 1, dtype=torch.float64)
        v = torch.sin(3 * t).view(1, -1, 1, 1, 1)
        steps = torch.full((1, n + 1, 1), dt, dtype=torch.float64)
        steps[:, 0] = 0  # the first token is the input at time 0
        ones = torch.ones_like(v)
        gates = {"log_decay": -steps, "early": (1 - weight) * steps, "late": weight * steps}
        y, _ = trapezoid_scan(ones, ones, v, **gates)
        exact = (math.sin(12) - 3 * math.cos(12) + 3 * math.exp(-4)) / 10
        errors.append(abs(y[0, -1].item() - exact))
    return math.log2(errors[0] / errors[1])


def test_the_trapezoid_rule_is_of_second_order_and_eulers_of_first():
    assert 0.95 < order(1.0) < 1.05
    assert 1.99 < order(0.5) < 2.01


@pytest.mark.plain
def test_errors_say_what_to_fix():
    inputs, _, _ = make(4)
    q, k, v, *_ = inputs
    gate = torch.zeros(B, 4, H)
    with pytest.raises(ValueError, match=r"want q, k \[B T R H K\].*got q \(2, 4, 2, 3\)"):
        trapezoid_scan(q[:, :, 0], k, v, log_decay=gate, early=gate, late=gate)
    with pytest.raises(ValueError, match=r"log_decay \(2, 4\)"):
        trapezoid_scan(q, k, v, log_decay=gate[..., 0], early=gate, late=gate)
    state = TrapezoidState(gate, gate, gate)
    with pytest.raises(ValueError, match=r"state: want \(2, 2, 3, 5\)"):
        trapezoid_scan(q, k, v, log_decay=gate, early=gate, late=gate, state=state)
