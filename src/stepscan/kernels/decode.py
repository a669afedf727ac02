"""`decode_step`: run the tape of a program once, see decode.cpp. Tapes: `generate/compiled`."""

import ctypes
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan import kernels


def available() -> bool:
    """Whether there is a kernel."""
    return kernels.available("decode_step")


def bind(words: Int[Tensor, "words"]) -> Callable[[], None]:
    """What runs this tape once, by as many threads as torch uses then.

    Nothing is checked: what the tape says, happens. The kernels are those that serve now.
    """
    code = kernels.kernels().code
    assert code is not None
    run, address, length = code.decode_step, ctypes.c_void_p(words.data_ptr()), len(words)
    run.argtypes, run.restype = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64], None
    return lambda: run(address, length, torch.get_num_threads())
