"""The scan over time and variates: laws along time, and its one-dimensional cases."""

import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.scan2d import FORMS, scan2d

B, V, D = 2, 3, 4
every_form = pytest.mark.parametrize("form", FORMS)
DTYPES = [torch.float64, torch.float32, torch.complex128, torch.complex64]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def make(T, variates=V, dtype=torch.float64, strength=0.5):
    a = torch.randn(B, T, variates, 2, 2, D, dtype=dtype) * strength
    b = torch.randn(B, T, variates, 2, D, dtype=dtype)
    return (a, b), torch.randn(B, variates, 2, D, dtype=dtype), torch.rand(B, T) < 0.15


def step(form):
    return lambda xs, state, resets: scan2d(*xs, state=state, resets=resets, form=form)


@every_dtype
@pytest.mark.parametrize(("T", "variates"), [(0, 3), (1, 1), (1, 5), (7, 1), (16, 16), (70, 3)])
def test_forms_law(dtype, T, variates):
    inputs, state, resets = make(T, variates, dtype, 0.3)
    forms_law(step("by_variate"), step("recurrent"), inputs, state, resets=resets)


@every_form
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_laws_along_time(form, dtype):
    inputs, state, resets = make(20, dtype=dtype)
    for cuts in ([0, 7], [3, 3, 9, 20], list(range(1, 20))):
        split_law(step(form), inputs, state, cuts, resets=resets)
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 9)


@every_form
def test_gradcheck(form):
    (a, b), state, _ = make(5, 2)
    leaf = [x[:1, ..., :2].clone().requires_grad_() for x in (a, b, state)]
    resets = torch.tensor([[False, False, True, False, False]])
    assert torch.autograd.gradcheck(lambda a, b, s: step(form)((a, b), s, resets), leaf)


@every_form
def test_without_transitions_across_variates_each_is_a_scan_of_its_own(form):
    (a, b), state, resets = make(30)
    a[:, :, :, 1] = 0  # into h2
    h, _ = step(form)((a, b), state, resets)
    for v in range(V):
        late = torch.cat([state[:, v, 1][:, None], b[:, :-1, v, 1]], 1)
        given = a[:, :, v, 0, 1] * late.masked_fill(resets[..., None], 0.0) + b[:, :, v, 0]
        own, _ = linear_scan(a[:, :, v, 0, 0], given, state=state[:, v, 0], resets=resets)
        assert_near(h[:, :, v, 0], own, what=f"variate {v}")
    a[:, :, :, 0, 1] = 0  # nor from h2
    h, _ = step(form)((a, b), state, resets)
    own, _ = linear_scan(a[:, :, 1, 0, 0], b[:, :, 1, 0], state=state[:, 1, 0], resets=resets)
    assert_near(h[:, :, 1, 0], own, what="h1 alone")


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (a, b), *_ = make(5)
    with pytest.raises(ValueError, match=r"b \(2, 5, 3, 2, 3\)"):
        scan2d(a, b[..., :3])
    with pytest.raises(ValueError, match="Did you mean 'by_variate'"):
        scan2d(a, b, form="by_variates")
