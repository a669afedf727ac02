import math

import pytest
import torch
from laws import assert_near, live_law
from torch.nn import functional as F

from stepscan.layers.mlp import GEGLU, SwiGLU


@pytest.mark.parametrize(
    ("width", "ratio", "hidden"), [(64, 8 / 3, 168), (128, 8 / 3, 344), (16, 4.0, 64), (4, 0.1, 8)]
)
def test_hidden_width_is_the_nearest_multiple_of_8(width, ratio, hidden):
    assert SwiGLU(width, ratio).out.in_features == hidden


def test_equals_its_equation_for_each_token_alone():
    mlp, x = SwiGLU(8).double(), torch.randn(2, 5, 8).double()
    gate, value = x[1, 3] @ mlp.gate.weight.mT, x[1, 3] @ mlp.value.weight.mT
    want = mlp.out.weight @ (gate * torch.sigmoid(gate) * value)
    assert_near(mlp(x)[1, 3], want, what="y")
    assert_near(F.silu(gate), gate * torch.sigmoid(gate), what="silu")


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_geglu_equals_its_equation(approximate, bias):
    mlp, x = GEGLU(8, bias=bias, approximate=approximate).double(), 3 * torch.randn(8).double()
    gate, value = (m.weight @ x + (m.bias if bias else 0) for m in (mlp.gate, mlp.value))
    inner = (2 / math.pi) ** 0.5 * (gate + 0.044715 * gate**3)
    bent = torch.tanh(inner) if approximate == "tanh" else torch.erf(gate / 2**0.5)
    want = mlp.out.weight @ (gate / 2 * (1 + bent) * value) + (mlp.out.bias if bias else 0)
    assert_near(mlp(x), want, what="y")


def test_every_parameter_is_live():
    for mlp in (SwiGLU(8), SwiGLU(8, bias=True), GEGLU(8, bias=True, approximate="tanh")):
        live_law(_Alone(mlp), torch.randn(2, 5, 8))


class _Alone(torch.nn.Module):
    """A channel mixer with the outputs of a mixer, for the law."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x), ()


@pytest.mark.plain
def test_errors_say_what_to_fix():
    with pytest.raises(ValueError, match="want ratio above 0, got 0"):
        SwiGLU(8, 0)
    with pytest.raises(ValueError, match="want approximate none or tanh, got 'erf'"):
        GEGLU(8, approximate="erf")
