"""Ridge and local regression: laws, and the batch problems they solve."""

import pytest
import torch
from laws import assert_agree, causal_law, forms_law, outcome, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan.ops import local_regression as local
from stepscan.ops import ridge_regression as ridge
from stepscan.ops.attention import AttentionState, attention

B, T, H, K, V = 2, 12, 2, 4, 3
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
RIDGE_CASES = [("recurrent", True), ("rls", False), ("chunked", True), ("chunked", False)]
every_ridge = pytest.mark.parametrize(("form", "decays"), RIDGE_CASES)
every_local = pytest.mark.parametrize("form", local.FORMS)
degrees = pytest.mark.parametrize("degree", [0, 1])


def ridge_step(form, decays, prior, steps=None):
    def run(inputs, state, resets):
        q, k, v, weight, g = inputs
        g = g if decays else None
        return ridge.ridge_regression(
            q, k, v, ridge=prior, weight=weight, log_decay=g, steps=steps, state=state,
            resets=resets, form=form,
        )  # fmt: skip

    return run


def local_step(form, degree):
    def run(inputs, state, resets):
        q, k, v, x = inputs
        return local.local_regression(
            q, k, v, x=x, degree=degree, state=state, resets=resets, form=form
        )

    return run


def make(dtype=torch.float64, T=T):
    q, k, x = (torch.randn(B, T, H, K, dtype=dtype) for _ in range(3))
    v = torch.randn(B, T, H, V, dtype=dtype)
    return q, F.normalize(k, dim=-1), v, x, torch.rand(B, T) < 0.15


def make_ridge(dtype=torch.float64, T=T):
    q, k, v, _, resets = make(dtype, T)
    weight, g = torch.rand(B, T, H, dtype=dtype), -0.3 * torch.rand(B, T, H, dtype=dtype)
    past = torch.randn(B, 5, H, K, dtype=dtype)
    gram = torch.einsum("bthk,bthl->bhkl", past, past)
    state = torch.cat([gram, torch.randn(B, H, K, V, dtype=dtype)], -1)
    prior = 0.5 + torch.rand(H, K, dtype=dtype)
    return (q, k, v, weight, g), state, resets, prior


def make_local(dtype=torch.float64, T=T):
    q, k, v, x, resets = make(dtype, T)
    length, slots = torch.tensor([3, 1]), torch.arange(3)
    unused = (slots < 3 - length[:, None])[..., None, None]
    state = AttentionState(
        torch.randn(B, 3, H, K, dtype=dtype).masked_fill(unused, 0.0),
        torch.randn(B, 3, H, V, dtype=dtype).masked_fill(unused, 0.0),
        length,
    )
    return (q, k, v, x), state, resets


@every_ridge
@every_dtype
@pytest.mark.parametrize("T", [1, 12, 70])
def test_forms_law_of_ridge_regression(form, decays, dtype, T):
    inputs, state, resets, prior = make_ridge(dtype, T)
    run, definition = (ridge_step(f, decays, prior) for f in (form, "recurrent"))
    forms_law(run, definition, inputs, state, resets=resets)


@degrees
@every_dtype
@pytest.mark.parametrize("T", [1, 12])
def test_forms_law_of_local_regression(degree, dtype, T):
    inputs, state, resets = make_local(dtype, T)
    run, definition = (local_step(f, degree) for f in ("parallel", "recurrent"))
    forms_law(run, definition, inputs, state, resets=resets)


@every_ridge
def test_laws_of_ridge_regression(form, decays):
    inputs, state, resets, prior = make_ridge()
    step = ridge_step(form, decays, prior)
    for cuts in ([0, 1], [3, 3, 8], list(range(1, T))):
        split_law(step, inputs, state, cuts, resets=resets)
    reset_law(step, inputs, state, resets)
    rows_law(step, inputs, state, resets=resets)
    causal_law(step, inputs, 6)
    leaves = [x.requires_grad_() for x in (*inputs, state, prior)]
    run = lambda *x: ridge_step(form, decays, x[-1])(x[:5], x[5], resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("form", ["recurrent", "chunked"])
def test_conjugate_gradients_follow_the_laws(form):
    inputs, state, resets, prior = make_ridge()
    step, definition = (ridge_step(f, True, prior, steps=3) for f in (form, "recurrent"))
    forms_law(step, definition, inputs, state, resets=resets)
    for cuts in ([0, 1], [3, 3, 8], list(range(1, T))):
        split_law(step, inputs, state, cuts, resets=resets)
    reset_law(step, inputs, state, resets)
    rows_law(step, inputs, state, resets=resets)


def test_enough_conjugate_gradients_are_the_solution_and_no_more_of_them_hurt():
    """As many as a key has numbers; more work on rounding errors, gradients included."""
    inputs, state, resets, prior = make_ridge(T=30)
    exact = ridge_step("chunked", True, prior)
    errors = []
    for steps in (1, 2, K, 30):
        step = ridge_step("chunked", True, prior, steps=steps)
        got, want = (run(inputs, state, resets)[0] for run in (step, exact))
        errors.append((got - want).abs().max().item())
    assert errors[0] > errors[1] > 1e-3
    assert max(errors[2:]) < 1e-9
    step = ridge_step("chunked", True, prior, steps=30)
    forms_law(step, exact, inputs, None, resets=resets)  # a state's H may be varied asymmetrically
    leaves = [x.requires_grad_() for x in (*inputs, state, prior)]
    run = lambda *x: ridge_step("chunked", True, x[-1], 30)(x[:5], x[5], resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@every_local
@degrees
def test_laws_of_local_regression(form, degree):
    inputs, state, resets = make_local()
    step = local_step(form, degree)
    for cuts in ([0, 1], [3, 3, 8], list(range(1, T))):
        split_law(step, inputs, state, cuts, resets=resets)
    reset_law(step, inputs, state, resets)
    rows_law(step, inputs, state, resets=resets)
    causal_law(step, inputs, 6)
    leaves = [x.requires_grad_() for x in (*inputs, *state[:2])]
    run = lambda *x: step(x[:4], AttentionState(*x[4:], state.length), resets)[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("form", ridge.FORMS)
def test_the_stream_of_least_squares_is_the_batch_problem(form):
    """Solved by QR on the stacked, weighted rows, never by normal equations."""
    (q, k, v, weight, _), _, _, prior = make_ridge(T=30)
    y, _ = ridge_step(form, False, prior)((q, k, v, weight, None), None, None)
    for b in range(B):
        for h in range(H):
            for t in range(30):
                root = weight[b, : t + 1, h, None].sqrt()
                rows = torch.cat([root * k[b, : t + 1, h], prior[h].sqrt().diag()])
                goals = torch.cat([root * v[b, : t + 1, h], torch.zeros(K, V).double()])
                M = torch.linalg.lstsq(rows, goals, driver="gels").solution
                torch.testing.assert_close(y[b, t, h], q[b, t, h] @ M, atol=1e-8, rtol=0)


def test_the_locally_constant_fit_is_softmax_attention():
    (q, k, v, x), state, resets = make_local()
    inputs = (q, k, v)
    mine = lambda z, s: local_step("parallel", 0)((*z, x), s, resets)  # noqa: E731
    theirs = lambda z, s: attention(*z, state=s, resets=resets)  # noqa: E731
    assert_agree(outcome(mine, inputs, state), outcome(theirs, inputs, state), what="softmax")


def test_the_local_line_is_the_weighted_least_squares_fit():
    (q, k, v, x), *_ = make_local()
    y, _ = local_step("parallel", 1)((q, k, v, x), None, None)
    for b, t, h in ((0, 0, 0), (0, 5, 1), (1, 11, 0)):
        w = (k[b, : t + 1, h] @ q[b, t, h]).softmax(0)
        design = F.pad(k[b, : t + 1, h] - x[b, t, h], (1, 0), value=1.0)
        penalty = 0.1 * torch.diag(torch.tensor([0.0, *[1.0] * K])).double()
        system = design.T @ (w[:, None] * design) + penalty
        fit = torch.linalg.solve(system, design.T @ (w[:, None] * v[b, : t + 1, h]))
        torch.testing.assert_close(y[b, t, h], fit[0], atol=1e-10, rtol=0)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (q, k, v, _, g), state, _, prior = make_ridge()
    with pytest.raises(ValueError, match=r"ridge \(4,\)"):
        ridge.ridge_regression(q, k, v, ridge=prior[0])
    with pytest.raises(ValueError, match='no log_decay and no steps with form="rls"'):
        ridge.ridge_regression(q, k, v, ridge=prior, log_decay=g, form="rls")
    with pytest.raises(ValueError, match=r"state: want \(2, 2, 4, 7\)"):
        ridge.ridge_regression(q, k, v, ridge=prior, state=state[..., 0])
    with pytest.raises(ValueError, match="degree=2"):
        local.local_regression(q, k, v, degree=2)
    with pytest.raises(ValueError, match="Did you mean 'parallel'"):
        local.local_regression(q, k, v, form="paralel")
