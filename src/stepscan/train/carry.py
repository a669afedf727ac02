"""Carried state: truncated back-propagation through time.

A stretch begins in the state that the one before ended in, without its graph. A memory that grows
(attention without a window) would grow for the whole run: it is cut to its newest slots, as in
Transformer-XL (Dai et al. 2019, arXiv:1901.02860).
"""

from typing import Any, TypeVar

from torch.utils import _pytree as pytree

S = TypeVar("S")


def newest_slots(state: S, slots: int) -> S:
    """Keep at most this many slots of everything in a state that grows, the newest."""

    def cut(node: Any) -> object:
        tensors = {name: getattr(node, name) for name in getattr(node, "GROWS", ())}
        if not tensors:
            return node
        return node._replace(**{k: t[:, max(0, t.shape[1] - slots) :] for k, t in tensors.items()})

    return pytree.tree_map(cut, state, is_leaf=lambda node: bool(getattr(node, "GROWS", ())))
