"""C functions as operators of torch, known to autograd, `torch.compile` and `torch.export`.

Every kernel is called the same way: the inputs in the order of the operator's schema, then the
outputs, then the sizes. A tensor is passed as its address, None as null, a whole number or a truth
value as int64, any other number as double. Tensors are contiguous float32 or bool: what is not
contiguous is copied, what has another dtype is refused.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from stepscan.kernels import LIBRARY, kernels

Outputs = Tensor | tuple[Tensor, ...]


def define(
    schema: str, *, allocate: Callable[..., Outputs], sizes: Callable[..., tuple[int, ...]]
) -> Callable[..., Any]:
    """The operator `torch.ops.stepscan.<name>` that runs the C function of the same name.

    `allocate` and `sizes` take the operator's arguments. `allocate` only makes the outputs, on any
    device, so that it also tells their shapes to a compiler.
    """
    name = schema.partition("(")[0]

    def run(*given: Any) -> Outputs:
        outputs = allocate(*given)
        every = (outputs,) if isinstance(outputs, Tensor) else outputs
        _call(name, *given, *every, *sizes(*given))
        return outputs

    LIBRARY.define(schema)
    LIBRARY.impl(name, run, "CPU")
    torch.library.register_fake(f"stepscan::{name}", allocate, lib=LIBRARY)
    return getattr(torch.ops.stepscan, name).default


def differentiate(
    name: str, *, save: Callable[..., None], backward: Callable[..., tuple[Tensor | None, ...]]
) -> None:
    """Give the operator `name` its derivative, which itself has none.

    `save(ctx, inputs, output)` and `backward(ctx, *grads)` are as for
    `torch.library.register_autograd`; `backward` calls the operator `<name>_backward`.
    """

    def refuse(*_: Any) -> tuple[Tensor, ...]:
        raise NotImplementedError(
            f"{name}: form 'cpu' has no second derivative; ask for another form"
        )

    again = f"stepscan::{name}_backward"
    torch.library.register_autograd(f"stepscan::{name}", backward, setup_context=save, lib=LIBRARY)
    torch.library.register_autograd(again, refuse, lib=LIBRARY)


def _call(function: str, *arguments: Any) -> None:
    _, why, code = kernels()
    if code is None:
        raise ValueError(f"{function}: no native kernels ({why}); use another form")
    alive = [x.contiguous() if isinstance(x, Tensor) else x for x in arguments]
    getattr(code, function)(*(_as_c(function, x) for x in alive))


def _as_c(function: str, x: Any) -> Any:
    if isinstance(x, Tensor):
        if x.dtype not in (torch.float32, torch.bool) or x.device.type != "cpu":
            raise ValueError(
                f"{function}: want float32 on a CPU, got {x.dtype} on {x.device}; use another form"
            )
        return ctypes.c_void_p(x.data_ptr())
    if x is None:
        return None
    return ctypes.c_int64(x) if isinstance(x, int) else ctypes.c_double(x)
