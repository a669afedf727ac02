import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.semiring_matrix_scan import FORMS, MAXIMA, semiring_matrix_scan
from stepscan.ops.semiring_scan import semiring_scan

B, D, N = 2, 2, 3
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
every_semiring = pytest.mark.parametrize("semiring", MAXIMA)
every_start = pytest.mark.parametrize("initial", [-torch.inf, 0.0])


def make(T, dtype=torch.float64):
    a, b = torch.randn(B, T, D, N, N, dtype=dtype), torch.randn(B, T, D, N, dtype=dtype)
    return (a, b), torch.randn(B, D, N, dtype=dtype), torch.rand(B, T) < 0.08


def step(form, semiring, initial=0.0):
    return lambda xs, state, resets: semiring_matrix_scan(
        *xs, semiring, initial=initial, state=state, resets=resets, form=form
    )


@every_dtype
@every_semiring
@every_start
@pytest.mark.parametrize("T", [0, 1, 15, 16, 17, 32, 70])
def test_forms_law(dtype, semiring, initial, T):
    inputs, state, resets = make(T, dtype)
    runs = [step(form, semiring, initial) for form in ("blocked", "recurrent")]
    forms_law(*runs, inputs, state, resets=resets)
    if T:
        got, want = (run(inputs, None, resets) for run in runs)
        assert_near(got, want, what="from a fresh start")


@every_form
@every_dtype
@every_semiring
def test_every_law_of_an_op(form, dtype, semiring):
    inputs, state, resets = make(40, dtype)
    for cuts in ([0], [1, 40], [3, 3, 16], list(range(1, 40))):
        split_law(step(form, semiring), inputs, state, cuts, resets=resets)
    reset_law(step(form, semiring), inputs, state, resets)
    rows_law(step(form, semiring), inputs, state, resets=resets)
    causal_law(step(form, semiring), inputs, 20)


@every_form
@every_semiring
def test_gradcheck(form, semiring):
    (a, b), state, _ = make(19)
    resets = torch.zeros(1, 19, dtype=torch.bool)
    resets[0, [5, 17]] = True
    leaf = [x.requires_grad_() for x in (a[:1, :, :1], b[:1, :, :1], state[:1, :1])]
    run = lambda a, b, s: step(form, semiring)((a, b), s, resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf)


@every_dtype
def test_max_and_min_give_the_same_bits_in_every_form(dtype):
    inputs, state, resets = make(300, dtype)
    runs = (step(form, "min_max")(inputs, state, resets) for form in FORMS)
    (h, last), (want, want_last) = runs
    assert torch.equal(h, want)
    assert torch.equal(last, want_last)


@every_form
@every_semiring
def test_one_number_in_a_neuron_is_the_diagonal_scan(form, semiring):
    (a, b), state, resets = make(50)
    a, b, state = a[..., :1, :1], b[..., :1], state[..., :1]
    got = semiring_matrix_scan(a, b, semiring, state=state, resets=resets, form=form)
    want = semiring_scan(
        a[..., 0, 0], b[..., 0], semiring, state=state[..., 0], resets=resets, form="recurrent"
    )
    assert_near([x[..., 0] for x in got], want, what=semiring)


def test_states_stay_within_what_was_put_in():
    a, b = torch.randn(1, 100_000, 1, 2, 2), torch.randn(1, 100_000, 1, 2)
    h, _ = semiring_matrix_scan(a, b, "min_max", initial=0.0)
    assert min(b.min(), 0) <= h.min()
    assert h.max() <= max(a.max(), b.max())


@every_form
def test_the_gradient_along_the_selected_path_is_one(form):
    """Transitions that keep number 0 and bound number 1: x_T[0] is x_0[0] after 10,000 steps."""
    a = torch.tensor([[5.0, -5.0], [-5.0, -4.0]]).expand(1, 10_000, 1, 2, 2)
    b = torch.full((1, 10_000, 1, 2), -3.0)
    start = torch.tensor([[[1.0, 2.0]]], requires_grad=True)
    _, last = semiring_matrix_scan(a, b, "min_max", state=start, form=form)
    (back,) = torch.autograd.grad(last[0, 0, 0], start)
    assert back.tolist() == [[[1.0, 0.0]]]


def test_permutations_count_modulo_three():
    """Ones step a neuron's high number on by one place, zeros keep it where it is."""
    bits = torch.randint(2, (1, 500))
    turn, keep = torch.eye(3).roll(1, 0), torch.eye(3)
    a = torch.where(bits[..., None, None].bool(), turn, keep)[:, :, None]
    start = torch.tensor([[[1.0, 0.0, 0.0]]])
    h, _ = semiring_matrix_scan(a, torch.zeros(1, 500, 1, 3), "min_max", state=start)
    assert torch.equal(h[:, :, 0].argmax(-1), bits.cumsum(1) % 3)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (a, b), *_ = make(5)
    with pytest.raises(ValueError, match="unknown semiring of matrices 'logsumexp_plus'"):
        semiring_matrix_scan(a, b, "logsumexp_plus")
    with pytest.raises(ValueError, match=r"b torch.float64 \(2, 5, 2, 2\)"):
        semiring_matrix_scan(a, b[..., :2], "min_max")
    with pytest.raises(ValueError, match="Did you mean 'blocked'"):
        semiring_matrix_scan(a, b, "min_max", form="block")
