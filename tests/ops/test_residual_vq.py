import pytest
import torch
from laws import assert_near

from stepscan.ops.quantize import perplexity, residual_vq


def test_hard_codes_are_nearest_to_what_is_left():
    """By hand, with a loop."""
    torch.manual_seed(0)
    x, codes = torch.randn(20, 5).double(), torch.randn(3, 7, 5).double()
    found = residual_vq(x, codes)
    for i, row in enumerate(x):
        left = row.clone()
        for m in range(3):
            best = min(range(7), key=lambda c: float((left - codes[m, c]).norm()))
            assert int(found.codes[i, m]) == best
            left = left - codes[m, best]
        assert_near(found.value[i], row - left, what="value")
    assert torch.equal(found.chances.argmax(-1), found.codes)


def test_cold_soft_codes_are_the_hard_ones():
    torch.manual_seed(0)
    x, codes = torch.randn(50, 6).double(), torch.randn(3, 8, 6).double()
    hard, soft = residual_vq(x, codes), residual_vq(x, codes, tau=1e-5)
    assert (hard.value - soft.value).abs().max() < 1e-4
    assert (hard.chances - soft.chances).abs().max() < 1e-4
    warm = residual_vq(x, codes, tau=1.0)
    assert (hard.value - warm.value).abs().max() > 0.1, "the check sees a difference"


def test_soft_codes_have_a_gradient_and_hard_ones_have_none():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    codes = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: residual_vq(a, b, tau=0.7).value, (x, codes))
    chances = residual_vq(x, codes).chances
    assert not chances.requires_grad


def test_perplexity_counts_codes_in_use():
    one = torch.zeros(12, 2, 4)
    one[:, 0, 1] = 1.0
    one[torch.arange(12), 1, torch.arange(12) % 3] = 1.0
    assert_near(perplexity(one), torch.tensor([1.0, 3.0]), what="perplexity")


def test_a_temperature_of_nothing_is_refused():
    with pytest.raises(ValueError, match="tau above 0"):
        residual_vq(torch.randn(2, 3), torch.randn(1, 4, 3), tau=0.0)
