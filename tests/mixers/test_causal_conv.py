import pytest
import torch
from laws import assert_near
from torch.nn import functional as F

from stepscan.mixers import MIXERS


def test_equals_its_equation_and_sees_no_further_than_the_window():
    mixer, x = MIXERS["causal_conv"](window=3).build(8).double(), torch.randn(1, 9, 8).double()
    y, _ = mixer(x)
    value, gate, conv = mixer.value(x[0]), F.silu(mixer.gate(x[0])), mixer.conv
    for t in range(9):
        c = conv.bias + sum(conv.weight[:, 2 - j] * value[t - j] for j in range(3) if t >= j)
        assert_near(y[0, t], mixer.out(gate[t] * c), what=f"y[{t}]")
    other = torch.cat([torch.randn_like(x[:, :4]), x[:, 4:]], 1)
    assert torch.equal(mixer(other)[0][:, 6:], y[:, 6:])


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(ValueError, match="want window at least 2, got 1"):
        MIXERS["causal_conv"](window=1).build(8)
    with pytest.raises(ValueError, match=r"expansion=0\.01 leaves no channels"):
        MIXERS["causal_conv"](expansion=0.01).build(8)
