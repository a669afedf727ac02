import math
from itertools import pairwise

import pytest
import torch
from laws import assert_near

from stepscan.ops.discretize import METHODS, discretize, discretize_diagonal
from stepscan.ops.hippo import MEASURES, diagonal, hippo, kernels, normal_part, reconstruct
from stepscan.ops.state_space import state_space

every_measure = pytest.mark.parametrize("measure", MEASURES)
WINDOWS = ("legt", "fout")


def impulse(measure, N, s):
    """e^{sA} B at each s; they are evenly spaced, from 0."""
    A, x = hippo(measure, N)
    step, found = ((s[1] - s[0]) * A).matrix_exp(), []
    for _ in s:
        found.append(x)
        x = step @ x
    return torch.stack(found)


def test_legs_is_a_warped_legendre_basis():
    s = torch.linspace(0, 3, 40, dtype=torch.float64)
    x = 2 * (-s).exp() - 1
    cubic = math.sqrt(7) * (5 * x**3 - 3 * x) / 2 * (-s).exp()
    got = impulse("legs", 16, s)
    assert (got[:, 3] - cubic).abs().max() < 1e-13
    assert (got - kernels("legs", 16, s)).abs().max() < 1e-13


def test_lagt_is_a_laguerre_basis():
    s = torch.linspace(0, 3, 40, dtype=torch.float64)
    assert (impulse("lagt", 16, s)[:, 2] - (1 - 2 * s + s**2 / 2) * (-s).exp()).abs().max() < 1e-13
    assert (impulse("lagt", 16, s) - kernels("lagt", 16, s)).abs().max() < 1e-13


def test_fout_turns_at_whole_frequencies():
    """Without the term that forgets, exactly; with it, ever closer to the window of 1."""
    s = torch.linspace(0, 0.99, 50, dtype=torch.float64)
    values, _, B, V = normal_part("fout", 16)
    turning = (values * s[:, None]).exp() * B
    got = 2 * (turning @ V.mT).real
    assert (got - 2 * kernels("fout", 16, s)).abs().max() < 1e-8
    far = [distance("fout", N) for N in (8, 32, 128)]
    assert far[0] > 2 * far[1] > 4 * far[2], far


def distance(measure, N, functions=4):
    """Root mean square between e^{sA} B and the functions, not at the edges of a window."""
    s = torch.linspace(0, 2, 400, dtype=torch.float64)
    gap = impulse(measure, N, s)[:, :functions] - kernels(measure, N, s)[:, :functions]
    gap = gap[(s > 0.1) & ((s - 1).abs() > 0.1)]
    return gap.square().mean().sqrt().item()


def test_legt_forgets_what_left_its_window():
    far = [distance("legt", N) for N in (4, 16, 64)]
    assert far[0] > 2 * far[1] > 4 * far[2], far


@every_measure
def test_functions_are_orthonormal_under_their_weight(measure):
    s = torch.linspace(0, 1 if measure in WINDOWS else 60, 400_001, dtype=torch.float64)
    w = MEASURES[measure].weight(s)
    p = MEASURES[measure].functions(6, s)
    gram = torch.trapezoid(p[:, :, None] * p[:, None] * w[:, None, None], s, dim=0)
    want = torch.eye(6, dtype=torch.float64)
    if measure == "fout":
        want[1, 1] = 0.0  # the sine of frequency 0
    assert (gram - want).abs().max() < 1e-5


@every_measure
def test_normal_part_is_the_matrix_in_other_words(measure):
    (A, B), (values, P, b, V) = hippo(measure, 16), normal_part(measure, 16)
    low = MEASURES[measure].low_rank(16)
    assert_near(2 * ((V * values) @ V.mH).real - low @ low.mT, A, what="A")
    assert_near(2 * (V @ b).real, B, what="B")
    assert_near(2 * (V @ P.mT).real, low, what="P")
    symmetric = (A + A.mT) / 2
    assert torch.linalg.eigvalsh(symmetric).max() < 1e-9  # no norm ever grows
    assert (values.imag >= 0).all()


def stream(measure, N, u, dt):
    A, b = discretize(*hippo(measure, N), torch.tensor([dt], dtype=torch.float64), "zoh")
    return state_space(u[None, :, None], A=A, b=b, c=torch.ones_like(b))[1][0, 0]


def smooth_noise(T, seed):
    """White noise with all above its lowest frequencies filtered out."""
    rng = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft(torch.randn(T, generator=rng, dtype=torch.float64))
    spectrum[T // 200 :] = 0
    noise = torch.fft.irfft(spectrum, T)
    return noise / noise.std()


@pytest.mark.parametrize("measure", ["legs", "legt", "fout"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_state_reconstructs_the_last_window_better_the_larger_it_is(measure, seed):
    steps = 1000  # of the window
    u = smooth_noise(4 * steps, seed)
    past = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps  # the middle of each step
    want = u.flip(0)[:steps]
    inside = slice(steps // 20, -steps // 20)  # a Fourier sum is wrong at its ends
    errors = []
    for N in (4, 8, 16, 32) if measure == "legt" else (4, 8, 16, 32, 64):  # until it is exact
        x = stream(measure, N, u, 1 / steps)
        found = reconstruct(measure, x, past)
        errors.append((found - want)[inside].square().mean().sqrt().item())
    assert all(a > b for a, b in pairwise(errors)), errors
    assert errors[-1] < 0.25 * errors[0], errors


@pytest.mark.parametrize(("method", "order"), [("bilinear", 2), ("zoh", 1), ("euler", 1)])
def test_discretizations_converge_at_their_order(method, order):
    """On a chirp, against a hundred times finer steps."""
    A, B = hippo("legs", 4)
    chirp = lambda t: torch.sin(2 * t + 1.5 * t**2)  # noqa: E731

    def end(steps, method):
        t = torch.arange(1, steps + 1, dtype=torch.float64) * (2 / steps)
        u = chirp(t)
        if method == "bilinear":  # takes the mean of both ends of a step
            u = (chirp(t) + chirp(t - 2 / steps)) / 2
        A_bar, b = discretize(A, B, torch.tensor([2 / steps], dtype=torch.float64), method)
        return state_space(u[None, :, None], A=A_bar, b=b, c=b)[1]

    true = end(40_000, "bilinear")
    errors = [(end(steps, method) - true).norm().item() for steps in (100, 200, 400, 800)]
    rates = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(abs(rate - order) < 0.15 for rate in rates), rates


@pytest.mark.parametrize("method", METHODS)
def test_diagonal_and_dense_agree(method):
    values = torch.tensor([-0.3 + 2j, -1.0 + 0.5j], dtype=torch.complex128)
    dt = torch.tensor([0.1, 0.3], dtype=torch.float64)
    log_a, b = discretize_diagonal(values.expand(2, 2), dt[:, None], method)
    for row, step in enumerate(dt):
        for n, value in enumerate(values):
            dense = torch.tensor([[value.real, -value.imag], [value.imag, value.real]])
            A, gain = discretize(dense.double(), torch.tensor([1.0, 0.0]).double(), step, method)
            assert_near(torch.complex(A[0, 0], A[1, 0]), log_a[row, n].exp(), what="A")
            assert_near(torch.complex(gain[0], gain[1]), b[row, n], what="b")


def test_initial_diagonals():
    assert_near(diagonal("lin", 3).imag, math.pi * torch.arange(3).double(), what="lin")
    want = 4 / math.pi * (4 / torch.tensor([1.0, 3.0]).double() - 1)
    assert_near(diagonal("inv", 2).imag, want, what="inv")
    assert torch.equal(diagonal("legs", 4), normal_part("legs", 8).values)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(ValueError, match="Did you mean 'legt' or 'legs'"):
        hippo("leg", 4)
    with pytest.raises(ValueError, match="want an even number"):
        normal_part("legs", 5)
    with pytest.raises(ValueError, match="Did you mean 'bilinear'"):
        discretize(*hippo("legs", 2), torch.ones(1).double(), "bilinea")
