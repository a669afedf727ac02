"""Products with weights: y = x W^T + b, by the fastest matrix product there is.

Almost all the arithmetic of a wide model is such products. There are two ways to do them: float32
by the faster one of torch's two libraries, and bfloat16 where that was asked for. Then x and W are
rounded, y is float32 again, and so are the gradients; CPUs with bfloat16 instructions do that twice
to four times as fast. Unlike `torch.autocast` it leaves alone what a recurrence multiplies,
whatever form it takes, and hands norms, gates and states float32.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.kernels import projection as native

ENOUGH_ROWS = 16
"""With fewer, rounding the weights takes longer than the product saves."""
ENOUGH_WORK = 1 << 20
"""Multiply-adds below which the faster library's start, some ten microseconds, costs more."""


class _Setting:
    bfloat16: ClassVar[bool] = False


@contextmanager
def bfloat16_projections(enabled: bool = True) -> Iterator[None]:
    """A context, as `torch.no_grad()` is one: float32 projections inside it run in bfloat16.

    For whatever model runs there, to be trained or to read a long prompt. Single tokens would gain
    nothing, so products of few rows stay as they are.
    """
    before, _Setting.bfloat16 = _Setting.bfloat16, enabled
    try:
        yield
    finally:
        _Setting.bfloat16 = before


def project(
    x: Float[Tensor, "*n I"],
    weight: Float[Tensor, "O I"],
    bias: Float[Tensor, " O"] | None = None,
) -> Float[Tensor, "*n O"]:
    """`F.linear`, in float32 on a CPU faster; small products and autocast are torch's."""
    float32 = x.dtype == weight.dtype == torch.float32
    if not float32 or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    if _Setting.bfloat16 and rows >= ENOUGH_ROWS:
        y = F.linear(x.bfloat16(), weight.bfloat16()).float()
        return y if bias is None else y + bias
    worth_it = rows >= ENOUGH_ROWS // 4 and rows * weight.numel() >= ENOUGH_WORK
    if not worth_it or x.device.type != "cpu" or not native.available():
        return F.linear(x, weight, bias)
    return native.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
