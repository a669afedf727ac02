import pytest
import torch
from laws import assert_near, reset_law, rows_law
from torch.nn import functional as F

from stepscan.layers.bidirectional import CentredConv, both_ways, mirror
from stepscan.ops.linear_attention import linear_attention

B, T = 3, 17
RESETS = torch.zeros(B, T, dtype=torch.bool)
RESETS[0, [4, 5, 12]] = True
RESETS[1, 0] = True


@pytest.mark.parametrize("keep", [0, 1, 5, 20])
@pytest.mark.parametrize("resets", [None, RESETS], ids=["whole", "segments"])
def test_the_mirror_keeps_the_end_in_place_and_is_its_own_inverse(resets, keep):
    x = torch.arange(B * T).view(B, T, 1).double()
    turned = mirror(x, resets, keep)
    assert torch.equal(mirror(turned, resets, keep), x)
    for row in range(B):
        marks = [] if resets is None else resets[row].nonzero().flatten().tolist()
        for piece, was in zip(
            turned[row].tensor_split(marks), x[row].tensor_split(marks), strict=True
        ):
            moved = max(len(was) - keep, 0)
            assert torch.equal(piece[moved:], was[moved:])
            assert torch.equal(piece[:moved], was[:moved].flip(0))


def scan(inputs, state, resets):
    q, k, v, g = inputs
    return linear_attention(q, k, v, log_decay=g, state=state, resets=resets)


def make():
    q, k, v = (torch.randn(B, T, 2, d).double() for d in (3, 3, 5))
    ahead, back = (-torch.rand(2, B, T, 2, 3).double()).unbind(0)
    return (q, k, v, ahead), (q, k, v, back), torch.randn(B, 2, 3, 5).double()


def test_one_scan_equals_a_forward_and_a_reversed_one():
    forward, backward, state = make()
    ahead, back, after = both_ways(scan, forward, backward, state, None)
    want, last = scan(forward, state, None)
    assert_near(ahead, want, what="forward")
    assert_near(after, last, what="state")
    reverse, _ = scan(tuple(x.flip(1) for x in backward), None, None)
    assert_near(back, reverse.flip(1), what="backward")


def test_nothing_crosses_a_reset():
    forward, backward, state = make()

    def step(inputs, state, resets):
        q, k, v, a, b = inputs
        ahead, back, state = both_ways(scan, (q, k, v, a), (q, k, v, b), state, resets)
        return torch.cat([ahead, back], -1), state

    reset_law(step, (*forward, backward[3]), state, RESETS)
    rows_law(step, (*forward, backward[3]), state, resets=RESETS)


@pytest.mark.parametrize("window", [1, 3, 7])
def test_a_centred_window_is_the_convolution_of_torch(window):
    conv, x = CentredConv(4, window).double(), torch.randn(B, T, 4).double()
    weight = conv.weight[:, None]
    want = F.conv1d(x.mT, weight, conv.bias, padding=window // 2, groups=4).mT
    assert_near(conv(x)[0], want, what="whole")
    state = torch.randn(B, window // 2, 4).double()
    reset_law(lambda xs, s, resets: conv(xs[0], s, resets), (x,), state, RESETS)
    assert conv.init_state(2).shape == (2, window // 2, 4)


@pytest.mark.plain
def test_even_windows_have_no_centre():
    with pytest.raises(ValueError, match="odd window, got 4"):
        CentredConv(4, 4)
