"""The norms of a model, by name."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from stepscan.names import lookup

NORMS: Mapping[str, Callable[..., nn.RMSNorm | nn.LayerNorm]] = MappingProxyType(
    {"rms": nn.RMSNorm, "layer": nn.LayerNorm}
)
"""RMSNorm (arXiv:1910.07467) divides by the size, LayerNorm (arXiv:1607.06450) subtracts the mean
before that and adds a bias after it."""


def norm(name: str, width: int, eps: float | None = None) -> nn.RMSNorm | nn.LayerNorm:
    """The norm over the last `width` channels; `eps` is added to the mean square, None is torch's
    own: the machine's for "rms", 1e-5 for "layer".
    """
    build = lookup(NORMS, name, kind="norm")
    return build(width) if eps is None else build(width, eps=eps)
