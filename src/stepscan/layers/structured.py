"""Structured linear maps in the place of dense ones, for channel mixers (arXiv:2406.16450).

    low_rank        W = U V                     V [r N], U [M r]
    block_dense     W = U diag(V_1 ... V_b)     V_i [r/b N/b], U [M r]
    block_shuffle   W = P diag(U_1 ... U_b) P' diag(V_1 ... V_b)
                                                V_i [r/b N/b], U_i [M/b r/b], r = min(N, M)

P' deals the r numbers in between round the blocks, so that each U_i sees something of every V_i;
P deals the outputs. The layer is y = W_o gelu(W_i x), both maps structured, without biases.

    map             parameters; a token costs two FLOPs each
    dense           M N
    low_rank        r (M + N)
    block_dense     r (M + N / b)
    block_shuffle   r (M + N) / b

Two thin products of one token take longer than a thick one where it is memory and calls that cost:
`pre_merge()` computes W once, for decoding. Training may be guided by a dense map that fades out:
`train.self_guided`. Initial values as published: block-diagonal factors orthonormal, block by
block; dense factors normal with 0.02, except that here their deviation is N^-1/2 of their inputs,
since 0.02 is that of models of width 2,500.
"""

import abc

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.mlp import hidden_width
from stepscan.ops.projection import project


class Structured(nn.Module, abc.ABC):
    """A linear map from N to M numbers by way of fewer parameters."""

    first: nn.Parameter
    second: nn.Parameter

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shape = outputs, inputs
        self.merged: Tensor | None
        self.register_buffer("merged", None, persistent=False)
        self.guide: nn.Parameter | None
        self.register_parameter("guide", None)
        self.guidance = 0.0
        """How much of the result is the guide's, from 1 to 0."""

    @abc.abstractmethod
    def apart(self, x: Float[Tensor, "... N"]) -> Float[Tensor, "... M"]:
        """The map, one factor after the other."""

    def to_dense(self) -> Float[Tensor, "M N"]:
        """W."""
        return self.apart(torch.eye(self.shape[1]).to(self.first)).mT

    def pre_merge(self) -> None:
        """From now on one dense product; later changes of the parameters do not show."""
        self.merged = self.to_dense().detach()

    @property
    def parameter_count(self) -> int:
        """Of the structured map alone."""
        return self.first.numel() + self.second.numel()

    @property
    def flops(self) -> int:
        """Of one token, factor after factor: a multiplication and an addition per parameter."""
        return 2 * self.parameter_count

    def forward(self, x: Float[Tensor, "... N"]) -> Float[Tensor, "... M"]:
        """The map, with what its guide says."""
        if self.merged is not None:
            return project(x, self.merged)
        if self.guide is None or not self.guidance:
            return self.apart(x)
        y = self.guidance * project(x, self.guide)
        return y + (1 - self.guidance) * self.apart(x) if self.guidance < 1 else y


class LowRank(Structured):
    """See the module docstring."""

    def __init__(self, inputs: int, outputs: int, rank: int, blocks: int) -> None:
        super().__init__(inputs, outputs)
        self.first = nn.Parameter(inputs**-0.5 * torch.randn(rank, inputs))
        self.second = nn.Parameter(rank**-0.5 * torch.randn(outputs, rank))

    def apart(self, x: Float[Tensor, "... N"]) -> Float[Tensor, "... M"]:
        """Thin, then wide."""
        return project(project(x, self.first), self.second)


class BlockDense(Structured):
    """See the module docstring."""

    def __init__(self, inputs: int, outputs: int, rank: int, blocks: int) -> None:
        super().__init__(inputs, outputs)
        _check(blocks, rank=rank, inputs=inputs)
        self.first = nn.Parameter(torch.empty(blocks, rank // blocks, inputs // blocks))
        _orthonormal(self.first)
        self.second = nn.Parameter(rank**-0.5 * torch.randn(outputs, rank))

    def apart(self, x: Float[Tensor, "... N"]) -> Float[Tensor, "... M"]:
        """Block by block, then all together."""
        return project(_blocks(x, self.first).flatten(-2), self.second)


class BlockShuffle(Structured):
    """See the module docstring; it has no rank to choose."""

    def __init__(self, inputs: int, outputs: int, rank: int, blocks: int) -> None:
        super().__init__(inputs, outputs)
        _check(blocks, inputs=inputs, outputs=outputs)
        between = min(inputs, outputs) // blocks
        self.first = nn.Parameter(torch.empty(blocks, between, inputs // blocks))
        self.second = nn.Parameter(torch.empty(blocks, outputs // blocks, between))
        _orthonormal(self.first)
        _orthonormal(self.second)

    def apart(self, x: Float[Tensor, "... N"]) -> Float[Tensor, "... M"]:
        """Block by block, dealt round, and again."""
        dealt = _blocks(x, self.first).mT.flatten(-2)
        return _blocks(dealt, self.second).mT.flatten(-2)


Kind = type[LowRank] | type[BlockDense] | type[BlockShuffle]


class StructuredMLP(nn.Module):
    """y = W_o gelu(W_i x) with structured maps of one kind."""

    def __init__(self, kind: Kind, width: int, ratio: float, rank: float, blocks: int) -> None:
        super().__init__()
        if not 0 < rank <= 1 or blocks < 1:
            raise ValueError(
                f"{kind.__name__}: want 0 < rank <= 1 and blocks at least 1, "
                f"got {rank} and {blocks}"
            )
        hidden = hidden_width(kind.__name__, width, ratio)
        size = max(blocks, blocks * round(rank * width / blocks))
        self.inner = kind(width, hidden, size, blocks)
        self.out = kind(hidden, width, size, blocks)

    def forward(self, x: Float[Tensor, "... D"]) -> Float[Tensor, "... D"]:
        """Each token on its own."""
        return self.out(F.gelu(self.inner(x)))


def low_rank(width: int, ratio: float = 4.0, *, rank: float = 0.25) -> nn.Module:
    """A channel mixer of low rank, a part of the model width."""
    return StructuredMLP(LowRank, width, ratio, rank, 1)


def block_dense(
    width: int, ratio: float = 4.0, *, rank: float = 0.25, blocks: int = 2
) -> nn.Module:
    """A channel mixer of block-diagonal and dense factors."""
    return StructuredMLP(BlockDense, width, ratio, rank, blocks)


def block_shuffle(width: int, ratio: float = 4.0, *, blocks: int = 2) -> nn.Module:
    """A channel mixer of block-diagonal factors with a shuffle in between."""
    return StructuredMLP(BlockShuffle, width, ratio, 1.0, blocks)


def pre_merge(model: nn.Module) -> None:
    """`Structured.pre_merge` everywhere in a model."""
    for module in model.modules():
        if isinstance(module, Structured):
            module.pre_merge()


def _blocks(x: Float[Tensor, "... N"], weight: Float[Tensor, "b P Q"]) -> Float[Tensor, "... b P"]:
    """Each block of x by its own matrix."""
    rows = x.reshape(-1, len(weight), weight.shape[-1]).transpose(0, 1)
    y = (rows @ weight.mT).transpose(0, 1)
    return y.reshape(*x.shape[:-1], len(weight), weight.shape[1])


def _orthonormal(weight: Tensor) -> None:
    for block in weight:
        nn.init.orthogonal_(block)


def _check(blocks: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size % blocks:
            raise ValueError(f"structured layer: blocks={blocks} must divide {name}={size}")
