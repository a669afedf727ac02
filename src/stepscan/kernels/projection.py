"""`linear(x, weight, bias)` = x weight^T + bias in float32, by oneDNN's matrix product.

torch sends float32 products to MKL, which keeps its widest instructions for the processors of its
maker: on others, oneDNN (it is a part of torch as well) is about twice as fast where they have
AVX-512, and as fast where they have not. Its gradients are products of the same kind.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stepscan.kernels import LIBRARY, kernels


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether `linear` serves and is worth it; a constant to `torch.compile`."""
    return kernels().code is not None and _worth_it()


@cache
def _worth_it() -> bool:
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    known = hasattr(torch.ops.mkldnn, "_linear_pointwise") and torch.backends.mkldnn.is_available()
    return known and "AuthenticAMD" in cpu


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    x, weight = _plain(x), _plain(weight)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _plain(x: Tensor) -> Tensor:
    """A matrix or its transpose: with any other strides oneDNN is a hundred times slower."""
    return x if x.is_contiguous() or x.mT.is_contiguous() else x.contiguous()


def _shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias = inputs
    ctx.save_for_backward(x, weight)
    ctx.biased = bias is not None


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x = linear(grad, weight.mT, None) if ctx.needs_input_grad[0] else None
    grad_weight = linear(grad.mT, x.mT, None) if ctx.needs_input_grad[1] else None
    return grad_x, grad_weight, grad.sum(0) if ctx.biased else None


LIBRARY.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
LIBRARY.impl("linear", _forward, "CPU")
torch.library.register_fake("stepscan::linear", _shape, lib=LIBRARY)
torch.library.register_autograd("stepscan::linear", _backward, setup_context=_save, lib=LIBRARY)
linear = torch.ops.stepscan.linear.default
