"""Weights of matrix products in panels of 16 rows, as kernels/cpp/decode/gemv.h reads them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

PANEL = 16
FORMATS: Mapping[str, int] = MappingProxyType({"fp32": 0, "bf16": 1, "int8": 2})
COLUMNS = (1, 2, 4)  # of a row that share one word of 32 bits


class Packed(NamedTuple):
    """A matrix [M, K] in one of `FORMATS`."""

    format: int
    rows: int
    columns: int
    data: Tensor
    scales: Float[Tensor, "rows"] | None


def pack(weight: Float[Tensor, "M K"], dtype: str) -> Packed:
    """Round a matrix to `dtype` and cut it into panels."""
    (rows, columns), form = weight.shape, FORMATS[dtype]
    weight, scales = weight.detach().float(), None
    if dtype == "int8":  # symmetric, one scale a row
        scales = weight.abs().amax(1) / 127
        scales = torch.where(scales > 0, scales, 1.0)
        weight = (weight / scales[:, None]).round().to(torch.int8)
        scales = F.pad(scales, (0, -rows % PANEL), value=1.0)
    if dtype == "bf16":
        weight = weight.bfloat16()
    each = COLUMNS[form]
    if columns % each or rows % PANEL:
        weight = F.pad(weight, (0, -columns % each, 0, -rows % PANEL))
    panels = weight.unflatten(1, (-1, each)).unflatten(0, (-1, PANEL)).transpose(1, 2)
    return Packed(form, rows, columns, panels.contiguous(), scales)
