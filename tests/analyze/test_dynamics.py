"""Fixed and slow points of maps where they are known, and of mixers."""

import pytest
import torch

from stepscan.analyze.dynamics import flatten, rest_points, step_of
from stepscan.mixers import MIXERS


def starts(n, size, scale=1.0, seed=0):
    rng = torch.Generator().manual_seed(seed)
    return scale * torch.randn(n, size, generator=rng, dtype=torch.float64)


def test_all_fixed_points_of_two_bistable_units_are_found():
    """h' = tanh(2 h) rests at 0 and at +-0.9575: nine points in two dimensions."""
    points = rest_points(lambda h: torch.tanh(2 * h), starts(200, 2), steps=500)
    assert len(points) == 9
    assert all(p.fixed for p in points)
    kinds = [p.kind for p in points]
    assert (kinds.count("attractor"), kinds.count("saddle"), kinds.count("repeller")) == (4, 4, 1)
    away = max(p.state.abs().max().item() for p in points)
    assert away == pytest.approx(0.95750402, abs=1e-7)
    assert sum(p.share for p in points) == pytest.approx(1)


def test_a_slow_point_is_not_taken_for_a_fixed_one():
    """h' = h + 0.1 h^2 + 1e-3: no fixed point, but h creeps through 0."""
    points = rest_points(lambda h: h + 0.1 * h**2 + 1e-3, starts(50, 1), steps=500)
    assert len(points) == 1
    (point,) = points
    assert not point.fixed
    assert abs(point.state.item()) < 1e-3
    assert point.speed == pytest.approx(1e-6 / 2, rel=1e-2)


def test_a_map_that_never_rests_has_no_points():
    assert rest_points(lambda h: h + 1.0, starts(20, 2), steps=200) == []


def test_a_turn_has_its_eigenvalues():
    turn = 0.9 * torch.linalg.matrix_exp(torch.tensor([[0.0, -0.5], [0.5, 0.0]]).double())
    (point,) = rest_points(lambda h: h @ turn.T + 1.0, starts(20, 2), steps=300)
    assert point.kind == "attractor"
    assert point.eigenvalues.abs().tolist() == pytest.approx([0.9, 0.9], abs=1e-6)
    assert point.eigenvalues.imag.abs().tolist() == pytest.approx(
        [0.9 * torch.tensor(0.5).sin().item()] * 2, abs=1e-6
    )


@pytest.mark.parametrize("name", ["gru", "min_gru", "lru", "gla"])
def test_a_mixer_rests_where_it_comes_to_rest(name):
    """The fixed point that is found is where thousands of the same token lead."""
    torch.manual_seed(0)
    mixer = MIXERS[name]().build(8).double()
    token = torch.randn(8, dtype=torch.float64)
    with torch.no_grad():
        state = mixer(torch.randn(30, 6, 8, dtype=torch.float64))[1]
        last = flatten(mixer(token.expand(1, 4000, 8))[1])
    like = mixer.init_state(1, dtype=torch.float64)
    points = rest_points(step_of(mixer, token, like), flatten(state).detach(), steps=300)
    nearest = min(points, key=lambda p: (p.state - last[0]).norm())
    assert nearest.fixed
    assert nearest.kind == "attractor"
    torch.testing.assert_close(nearest.state, last[0], atol=1e-6, rtol=1e-6)
