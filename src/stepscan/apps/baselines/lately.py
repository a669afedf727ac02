"""What a user took before, the newest first, then what is popular: people come back to songs,
groceries and shops, and a model that is not ahead of this has learned nothing of them.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.data.base import Packed


def lately(
    packed: Packed, users: Int[Tensor, " n"], popular: Float[Tensor, " V"]
) -> Float[Tensor, "n V"]:
    """Higher is offered first.

    Args:
        packed: Histories; symbol 0 is no item.
        users: Some of them, by number.
        popular: From 0 to below 1, for items that are not in a history.
    """
    assert packed.tokens is not None
    found = popular.double().repeat(len(users), 1)
    for row, user in zip(found, users.tolist(), strict=True):
        begin, size = int(packed.begins[user]), int(packed.lengths[user])
        items = packed.tokens[begin : begin + size, 0].long()
        row.scatter_reduce_(0, items, 1 + torch.arange(size).double(), "amax")
    return found
