import pytest
import torch
from laws import (
    assert_agree,
    assert_near,
    causal_law,
    forms_law,
    outcome,
    reset_law,
    rows_law,
    split_law,
)
from native import accuracy_law, every_level, every_thread, needs, repeat_law

from stepscan.ops.semiring_scan import SEMIRINGS, semiring_scan

B, D = 2, 3
SCALES = {"mild": 1.0, "zero": 0.0, "extreme": 1e4}
native = needs("semiring_scan")
LAWFUL = [
    ("recurrent", torch.float64),
    ("blocked", torch.float64),
    pytest.param("cpu", torch.float32, marks=native),
]
every_case = pytest.mark.parametrize(("form", "dtype"), LAWFUL, ids=str)
every_pair = pytest.mark.parametrize(
    ("form", "dtype"), [*LAWFUL[1:], ("blocked", torch.float32)], ids=str
)
every_semiring = pytest.mark.parametrize("semiring", SEMIRINGS)
every_start = pytest.mark.parametrize("initial", [-torch.inf, 0.0])


def make(T=70, dtype=torch.float64, scale=1.0, B=B, D=D):
    a, b = torch.randn(2, B, T, D, dtype=dtype)
    return (-scale * a.abs(), b), torch.randn(B, D, dtype=dtype), torch.rand(B, T) < 0.05


def step(form, semiring, initial=-torch.inf):
    return lambda xs, state, resets: semiring_scan(
        *xs, semiring, initial=initial, state=state, resets=resets, form=form
    )


@every_pair
@every_semiring
@every_start
@pytest.mark.parametrize("T", [0, 1, 31, 32, 33, 64, 130])
def test_forms_law(form, dtype, semiring, initial, T):
    inputs, state, resets = make(T, dtype)
    run = [step(f, semiring, initial) for f in (form, "recurrent")]
    forms_law(*run, inputs, state, resets=resets)
    if T:
        y, want = (r(inputs, None, resets) for r in run)
        assert_near(y, want, what="from a fresh start")


@every_pair
@every_semiring
@pytest.mark.parametrize("scale", SCALES)
def test_forms_law_in_every_regime(form, dtype, semiring, scale):
    inputs, state, resets = make(dtype=dtype, scale=SCALES[scale])
    if semiring == "min_max":  # equal numbers share a gradient: another split is as right
        inputs = (inputs[0] + 1e-3 * torch.randn_like(inputs[0]), inputs[1])
    forms_law(step(form, semiring), step("recurrent", semiring), inputs, state, resets=resets)


@every_case
@every_semiring
@every_start
def test_every_law_of_an_op(form, dtype, semiring, initial):
    inputs, state, resets = make(dtype=dtype)
    run = step(form, semiring, initial)
    for cuts in ([0], [1, 70], [32, 64], [3, 3, 40], list(range(1, 70))):
        split_law(run, inputs, state, cuts, resets=resets)
    reset_law(run, inputs, state, resets)
    rows_law(run, inputs, state, resets=resets)
    causal_law(run, inputs, 40)


@pytest.mark.parametrize("form", ["recurrent", "blocked"])
@every_semiring
@every_start
def test_gradcheck(form, semiring, initial):
    inputs, state, _ = make(T=35)
    leaf = [x[:1].requires_grad_() for x in (*inputs, state)]
    resets = torch.zeros(1, 35, dtype=torch.bool)
    resets[0, [7, 33]] = True
    run = lambda a, b, s: step(form, semiring, initial)((a, b), s, resets)  # noqa: E731
    assert torch.autograd.gradcheck(run, leaf)


DECAYS = {  # what `times` adds in the semirings of +; to compare with in min_max
    "sigmoid": lambda n: torch.nn.functional.logsigmoid(n + 3),
    "strong": lambda n: -20 * torch.rand_like(n),
    "any size": lambda n: -(10 ** (8 * torch.rand_like(n) - 4)),
    "gone at times": lambda n: torch.full_like(n, -1e-3).where(torch.rand_like(n) > 0.05, -1e4),
    "wholly gone at times": lambda n: torch.full_like(n, -1e-3).where(
        torch.rand_like(n) > 0.05, -1e6
    ),
    "none": torch.zeros_like,
}


@native
@every_semiring
@pytest.mark.parametrize("decay", DECAYS)
def test_native_form_in_every_regime(semiring, decay, poisoned):
    inputs, state, resets = make(300, torch.float32, B=2, D=9)
    inputs = (DECAYS[decay](inputs[0]), inputs[1])
    for marks in (None, resets):
        accuracy_law(lambda form: step(form, semiring), inputs, state, resets=marks)


@native
@every_level
@every_thread
@pytest.mark.parametrize("semiring", SEMIRINGS)
def test_native_form_on_poisoned_memory(level, threads, semiring, poisoned):
    run = lambda form: step(form, semiring, 0.0)  # noqa: E731
    for rows, T, channels in ((1, 1, 1), (3, 33, 63), (2, 7, 64), (3, 130, 130)):
        inputs, state, resets = make(T, torch.float32, B=rows, D=channels)
        accuracy_law(run, inputs, state, resets=resets)
        repeat_law(run, inputs, state, resets=resets)


@every_case
@every_semiring
def test_equal_numbers_share_a_gradient(form, dtype, semiring):
    flat = torch.zeros(B, 9, D, dtype=dtype)
    state = torch.zeros(B, D, dtype=dtype)
    got, want = (
        outcome(lambda xs, s, f=f: step(f, semiring, 0.0)(xs, s, None), (flat, flat), state)
        for f in (form, "recurrent")
    )
    if form == "blocked" and semiring != "logsumexp_plus":  # other pairs meet: another split
        got, want = got[:2], want[:2]
        assert_near(got, want, what="equal numbers")
    else:
        assert_agree(got, want, what="equal numbers")


@every_case
@every_semiring
def test_nan_is_passed_on(form, dtype, semiring):
    (a, b), state, _ = make(9, dtype)
    for place in (a, b, state):
        place[0, 0] = torch.nan
        h, last = step(form, semiring)((a, b), state, None)
        assert h[0, -1:].isnan().any() or last[0].isnan().any()
        assert h[1].isfinite().all()
        place[0, 0] = 0.0


@every_case
def test_any_strides_will_do_and_inputs_are_kept(form, dtype):
    inputs, state, resets = make(64, dtype)
    strided = tuple(x.mT.contiguous().mT for x in (*inputs, state))
    assert not any(x.is_contiguous() for x in strided)
    before = [x.clone() for x in strided]
    run = lambda f: lambda xs, s: step(f, "logsumexp_plus")(xs, s, resets)  # noqa: E731
    want = outcome(run("recurrent"), inputs, state)
    assert_agree(outcome(run(form), strided[:2], strided[2]), want, what="strides")
    run(form)(strided[:2], strided[2])
    assert all(map(torch.equal, strided, before))


@native
@pytest.mark.plain
@every_semiring
def test_native_form_is_a_whole_operator(semiring):
    inputs, state, resets = make(9, torch.float32)
    a, b, start = (x.requires_grad_() for x in (*inputs, state))
    args = (a, b, start, resets, SEMIRINGS[semiring].number, -torch.inf)
    torch.library.opcheck(torch.ops.stepscan.semiring_scan.default, args)
    compiled = torch.compile(semiring_scan, backend="eager", fullgraph=True)
    assert_near(compiled(a, b, semiring), semiring_scan(a, b, semiring), what="compiled")
    h, _ = semiring_scan(a, b, semiring, form="cpu")
    (once,) = torch.autograd.grad(h.sum(), b, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        once.sum().backward()


def test_log_semiring_is_the_cumulative_one():
    (_, b), *_ = make()
    h, _ = semiring_scan(torch.zeros_like(b), b, "logsumexp_plus")
    torch.testing.assert_close(h, b.logcumsumexp(1))
    h, _ = semiring_scan(torch.zeros_like(b), b, "max_plus")
    torch.testing.assert_close(h, b.cummax(1).values)
    h, _ = semiring_scan(torch.full_like(b, 0.5), b, "min_max", initial=0.0)
    assert h.min() >= b.min()
    assert h[:, 0].equal(b[:, 0].clamp(min=0.0))


def test_half_precision_inputs_keep_a_wide_state():
    inputs, *_ = make(dtype=torch.bfloat16)
    y, state = step("auto", "max_plus")(inputs, None, None)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (a, b), *_ = make()
    with pytest.raises(ValueError, match="Did you mean 'max_plus'"):
        semiring_scan(a, b, "max_pls")
    with pytest.raises(ValueError, match=r"b torch.float64 \(2, 70, 2\)"):
        semiring_scan(a, b[..., :2], "max_plus")
    with pytest.raises(ValueError, match="want real a, b"):
        semiring_scan(a + 0j, b + 0j, "max_plus")
    with pytest.raises(ValueError, match="use another form"):
        semiring_scan(a, b, "max_plus", form="cpu")
    with pytest.raises(ValueError, match="Did you mean 'blocked'"):
        semiring_scan(a, b, "max_plus", form="block")
