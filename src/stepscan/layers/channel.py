"""Every channel mixer the library ships, by name. Adding one: a class, a line here, one in the
docs.

A channel mixer is a module of `(width, ratio, **options)` that maps [... D] to [... D], each token
on its own: it has no state, and the laws hold for whatever it does.
"""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

from stepscan.layers.experts import Experts
from stepscan.layers.mlp import GEGLU, GELU, SwiGLU
from stepscan.layers.structured import block_dense, block_shuffle, low_rank
from stepscan.names import lookup

CHANNEL_MIXERS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "block_dense": block_dense,
        "block_shuffle": block_shuffle,
        "geglu": GEGLU,
        "gelu": GELU,
        "low_rank": low_rank,
        "moe": Experts,
        "swiglu": SwiGLU,
    }
)


class ChannelConfig(NamedTuple):
    """A name and its options."""

    name: str
    options: Mapping[str, Any]

    def build(self, width: int, ratio: float) -> nn.Module:
        """The module, for a model of this width."""
        return CHANNEL_MIXERS[self.name](width, ratio, **self.options)


def channel_config(data: Mapping[str, Any]) -> ChannelConfig:
    """From plain data; unknown names and options are errors."""
    options = dict(data)
    name = str(options.pop("name", ""))
    known = inspect.signature(lookup(CHANNEL_MIXERS, name, kind="channel mixer")).parameters
    for key in options:
        lookup(
            {k: v for k, v in known.items() if k not in ("width", "ratio")},
            key,
            kind=f"option of {name}",
        )
    return ChannelConfig(name, options)
