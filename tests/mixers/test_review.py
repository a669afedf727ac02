import pytest
import torch
from laws import assert_near
from torch import nn

from stepscan.mixers import MIXERS
from stepscan.mixers.review import Review, ReviewConfig


def reference(mixer: Review, x):
    """Window by window, with torch's own bidirectional GRU and a loop over the attention."""
    width, inner = x.shape[-1], mixer.key.in_features // 2
    gru = nn.GRU(width, inner, bidirectional=True, batch_first=True).to(x.dtype)
    with torch.no_grad():
        for weights, suffix in ((mixer.ahead, ""), (mixer.back, "_reverse")):
            names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
            for name, value in zip(names, weights(), strict=True):
                getattr(gru, name + suffix).copy_(value)
        rows = []
        for t in range(x.shape[1]):
            h, _ = gru(x[:, max(0, t + 1 - mixer.config.window) : t + 1])
            q = x[:, t] @ mixer.query.weight.T
            scores = torch.stack(
                [(q * (h[:, j] @ mixer.key.weight.T)).sum(1) for j in range(h.shape[1])], 1
            )
            alpha = (scores / (2 * inner) ** 0.5).softmax(1)
            rows.append((alpha[..., None] * h).sum(1) @ mixer.out.weight.T)
    return torch.stack(rows, 1)


@pytest.mark.parametrize("window", [2, 5, 32])
def test_it_is_a_bidirectional_network_and_attention_over_each_window(window):
    torch.manual_seed(0)
    mixer = ReviewConfig(window=window).build(12).double()
    x = torch.randn(3, 11, 12, dtype=torch.float64)
    assert_near(mixer(x)[0], reference(mixer, x), what="review")


def test_attention_stays_in_the_segment_and_sums_to_one():
    mixer = ReviewConfig(window=6).build(8)
    resets = torch.zeros(2, 10).bool()
    resets[0, 4] = True
    _, _, weights = mixer.attend(torch.randn(2, 10, 8), None, resets)
    assert_near(weights.sum(-1), torch.ones(2, 10), what="sum")
    for t in range(10):
        reach = min(6, t + 1 - (4 if t >= 4 else 0))
        assert (weights[0, t, -reach:] > 0).all()
        assert (weights[0, t, : 6 - reach] == 0).all()
    assert (weights[1, 9] > 0).all()


def test_a_change_beyond_the_window_is_not_seen():
    mixer = ReviewConfig(window=4).build(8).double()
    x = torch.randn(1, 9, 8).double()
    other = x.clone()
    other[:, 4] += 1
    a, b = mixer(x)[0], mixer(other)[0]
    assert_near(a[:, 8], b[:, 8], what="beyond")
    assert (a[:, 4:8] - b[:, 4:8]).abs().amin() > 1e-6


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ValueError, match="window at least 2"):
        ReviewConfig(window=1).build(8)
    assert MIXERS["review"] is ReviewConfig
