import pytest
import torch
from laws import assert_near

from stepscan.layers.rotary import rotate


def test_a_product_depends_on_the_distance_only():
    q, k = torch.randn(2, 1, 1, 3, 8).double().unbind(0)
    at = lambda x, t: rotate(x, torch.tensor([[t]]))  # noqa: E731
    product = lambda s, t: (at(q, s) * at(k, t)).sum(-1)  # noqa: E731
    assert_near(product(7, 4), product(1003, 1000), what="distance 3")
    assert (product(7, 4) - product(7, 5)).abs().max() > 1e-3
    assert_near(at(q, 0), q, what="position 0")
    assert_near(at(q, 5).norm(dim=-1), q.norm(dim=-1), what="length")


def test_equals_a_multiplication_of_complex_numbers():
    x, places = torch.randn(2, 5, 3, 6).double(), torch.randint(0, 1000, (2, 5))
    angle = places[..., None, None] * 100.0 ** -(torch.arange(0, 6, 2).double() / 6)
    want = torch.complex(x[..., :3], x[..., 3:]) * torch.exp(1j * angle)
    assert_near(rotate(x, places, 100.0), torch.cat([want.real, want.imag], -1), what="rotated")


def test_far_positions_stay_exact_in_float32():
    x, places = torch.randn(1, 1, 1, 4), torch.tensor([[10_000_000]])
    assert_near(rotate(x, places), rotate(x.double(), places).float(), what="far")
    assert rotate(x.bfloat16(), places).dtype == torch.bfloat16


@pytest.mark.plain
def test_odd_head_size_is_refused():
    with pytest.raises(ValueError, match="want an even head size, got 3"):
        rotate(torch.zeros(1, 1, 1, 3), torch.zeros(1, 1, dtype=torch.int64))
