import math
import time

import pytest
import torch
from laws import (
    assert_agree,
    causal_law,
    forms_law,
    outcome,
    reset_law,
    rows_law,
    split_law,
)

from stepscan.ops import dplr_conv as dplr_op
from stepscan.ops import ssm_conv as ssm_op
from stepscan.ops import state_space as dense_op
from stepscan.ops.discretize import discretize
from stepscan.ops.dplr_conv import System, dplr_conv, dplr_kernel
from stepscan.ops.hippo import LEAST_DECAY, MEASURES, hippo, normal_part
from stepscan.ops.ssm_conv import ssm_conv
from stepscan.ops.state_space import kernel, state_space

B, D, N = 2, 3, 6
DTYPES = [torch.float64, torch.float32]
every_cut = pytest.mark.parametrize(
    "cuts", [[0], [1, 40], [32], [3, 3, 20], list(range(1, 40))], ids=str
)
marked = pytest.mark.parametrize("marked", [False, True], ids=["", "resets"])


def steps_of(dtype):
    return torch.tensor([0.01, 0.05, 0.2], dtype=dtype)


def dense_case(dtype):
    """LegS as LSSL has it."""
    A, b = discretize(*hippo("legs", N), steps_of(torch.float64))
    system = {"A": A.to(dtype), "b": b.to(dtype), "c": torch.randn(D, N, dtype=dtype)}
    params = [x.requires_grad_() for x in system.values()]
    state = torch.randn(B, D, N, dtype=dtype)

    def run(form):
        return lambda xs, s, r: state_space(xs[0], **system, state=s, resets=r, form=form)

    return run, state, params


def dplr_system(measure, dtype, n=N, rows=D):
    parts = normal_part(measure, n)
    values = torch.complex(parts.values.real.clamp(max=-LEAST_DECAY), parts.values.imag)
    wide = torch.promote_types(dtype, torch.float32).to_complex()
    values, P, b = (x.to(wide).expand(rows, *x.shape).clone() for x in (values, *parts[1:3]))
    return System(values, P, b, torch.randn(rows, n // 2, dtype=wide), steps_of(dtype)[:rows])


def dplr_case(dtype, measure="legs"):
    system = System(*(x.requires_grad_() for x in dplr_system(measure, dtype)))
    state = torch.randn(B, D, N // 2, dtype=system.b.dtype)

    def run(form):
        return lambda xs, s, r: dplr_conv(xs[0], system, state=s, resets=r, form=form)

    return run, state, list(system)


def real_case(dtype):
    """A moving average, as MEGA has it."""
    system = {"log_a": -torch.rand(D, N, dtype=dtype)}
    system |= {name: torch.randn(D, N, dtype=dtype) for name in "bc"}
    params = [x.requires_grad_() for x in system.values()]
    state = torch.randn(B, D, N, dtype=dtype)

    def run(form):
        return lambda xs, s, r: ssm_conv(xs[0], **system, state=s, resets=r, form=form)

    return run, state, params


CASES = {
    "dense": (dense_case, dense_op.FORMS),
    "dplr": (dplr_case, dplr_op.FORMS),
    # Of rank 2, and undamped but for it: Cauchy sums lose too many digits there, see `fft`.
    "legt": (lambda dtype: dplr_case(dtype, "legt"), ("recurrent", "chunked")),
    "real": (real_case, ssm_op.FORMS),
}
every_form = pytest.mark.parametrize(
    ("case", "form"), [(make, form) for make, forms in CASES.values() for form in forms],
    ids=[f"{name}-{form}" for name, (_, forms) in CASES.items() for form in forms],
)  # fmt: skip


def some_resets(T, marked):
    return torch.rand(B, T) < 0.05 if marked else None


@every_form
@pytest.mark.parametrize("T", [0, 1, 31, 32, 33, 130])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@marked
def test_forms_agree(case, form, T, dtype, marked):
    run, state, params = case(dtype)
    u, resets = torch.randn(B, T, D, dtype=dtype), some_resets(T, marked)
    at = lambda form: lambda xs, s: run(form)(xs, s, resets)  # noqa: E731
    forms_law(run(form), run("recurrent"), (u,), state, resets=resets)
    got, want = (outcome(at(f), (u,), state, params) for f in (form, "recurrent"))
    assert_agree(got, want, what=f"{form} with parameters")


@every_form
@every_cut
@marked
def test_split_law(case, form, cuts, marked):
    run, state, params = case(torch.float64)
    u = torch.randn(B, 40, D, dtype=torch.float64)
    split_law(run(form), (u,), state, cuts, resets=some_resets(40, marked), params=params)


@every_form
def test_reset_rows_and_causal_laws(case, form):
    run, state, params = case(torch.float64)
    u, resets = torch.randn(B, 70, D, dtype=torch.float64), some_resets(70, True)
    reset_law(run(form), (u,), state, resets, params=params)
    rows_law(run(form), (u,), state, resets=resets, params=params)
    rows_law(run(form), (u,), state, params=params)
    if form != "fft":
        causal_law(run(form), (u,), 40)


@pytest.mark.parametrize("form", dense_op.FORMS)
@marked
def test_dense_gradcheck(form, marked):
    _, state, (A, b, c) = dense_case(torch.float64)
    resets = torch.zeros(1, 35, dtype=torch.bool).index_fill_(1, torch.tensor([9, 33]), marked)
    u = torch.randn(1, 35, D, dtype=torch.float64, requires_grad=True)
    run = lambda u, A, b, c, s: state_space(  # noqa: E731
        u, A=A, b=b, c=c, state=s, resets=resets if marked else None, form=form
    )
    leaf = [u, A, b, c, state[:1].requires_grad_()]
    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


@pytest.mark.parametrize("form", dplr_op.FORMS)
@pytest.mark.parametrize("measure", MEASURES)
def test_dplr_gradcheck(form, measure):
    _, state, params = dplr_case(torch.float64, measure)
    u = torch.randn(1, 35, D, dtype=torch.float64, requires_grad=True)
    run = lambda u, s, *p: dplr_conv(u, System(*p), state=s, form=form)  # noqa: E731
    leaf = [u, state[:1].requires_grad_(), *params]
    assert torch.autograd.gradcheck(run, leaf, fast_mode=True)


# What the published systems promise ---------------------------------------------------------------


def test_step_scan_and_convolution_are_one_system():
    """512 steps of LSSL with 64 states."""
    dt = torch.tensor([0.002, 0.02, 0.1], dtype=torch.float64)
    A, b = discretize(*hippo("legs", 64), dt)
    c, u = torch.randn(3, 64, dtype=torch.float64), torch.randn(2, 512, 3, dtype=torch.float64)
    want = state_space(u, A=A, b=b, c=c, form="recurrent")
    for form in ("chunked", "fft"):
        for got, true in zip(state_space(u, A=A, b=b, c=c, form=form), want, strict=True):
            assert (got - true).abs().max() < 1e-10
    ys, state = [], None
    for u_t in u.split(1, 1):
        y, state = state_space(u_t, A=A, b=b, c=c, state=state)
        ys.append(y)
    assert (torch.cat(ys, 1) - want[0]).abs().max() < 1e-10


@pytest.mark.parametrize("measure", MEASURES)
def test_dplr_kernel_is_the_naive_kernel(measure):
    """64 states, 4096 lags, one product after the other; also an odd length."""
    system = dplr_system(measure, torch.float64, 64, 1)
    A, x, c = (part[0] for part in dplr_op.dense(system))
    naive = []
    for _ in range(4096):
        naive.append(c @ x)
        x = A @ x
    assert (dplr_kernel(system, 4096)[0] - torch.stack(naive)).abs().max() < 1e-8
    assert (dplr_kernel(system, 333)[0] - torch.stack(naive)[:333]).abs().max() < 1e-8


def test_the_dplr_system_is_the_hippo_matrix():
    """The kernel in eigenvectors is that of the dense matrix, discretized as it is."""
    dt, C = steps_of(torch.float64), torch.randn(D, N, dtype=torch.float64)
    A, b = discretize(*hippo("legs", N), dt)
    parts = normal_part("legs", N)
    system = System(
        *(x.expand(D, *x.shape) for x in parts[:3]), 2 * C.to(parts.V.dtype) @ parts.V, dt
    )
    assert (dplr_kernel(system, 200) - kernel(A, b, C, 200)).abs().max() < 1e-12


@pytest.mark.slow
def test_the_cost_of_a_dplr_kernel_grows_as_its_length():
    system = dplr_system("legs", torch.float64, 64, 1)
    sizes = [1 << power for power in range(10, 17)]
    logs = []
    for size in sizes:
        spans = []
        for _ in range(9):
            start = time.process_time()
            dplr_kernel(system, size)
            spans.append(time.process_time() - start)
        logs.append(math.log(min(spans)))
    x = torch.tensor([math.log(size) for size in sizes])
    x, y = x - x.mean(), torch.tensor(logs) - torch.tensor(logs).mean()
    slope = ((x * y).sum() / (x * x).sum()).item()
    assert slope <= 1.2, (slope, logs)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    run, _, _ = dense_case(torch.float64)
    u = torch.randn(B, 5, D, dtype=torch.float64)
    with pytest.raises(ValueError, match="want u"):
        run("auto")((u[..., :2],), None, None)
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        run("chunk")((u,), None, None)
    system = dplr_system("legs", torch.float64)
    with pytest.raises(ValueError, match=r"dt \(2,\)"):
        dplr_conv(u, system._replace(dt=system.dt[:2]))
    with pytest.raises(ValueError, match="state: want"):
        dplr_conv(u, system, state=system.b)
