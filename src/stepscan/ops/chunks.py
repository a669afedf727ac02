r"""What the chunked forms of the delta family share.

A memory that is corrected as it is written, S = diag(exp(g)) S + w u^T with u read off S itself, is
inside a chunk of C steps a triangular system: the pairs of (what a step reads, what an earlier step
wrote) form a matrix, its inverse gives every u of the chunk as `fresh + held S`, with S the state
at the chunk's start. All chunks are solved at once; only the walk over those S is sequential.
This is the WY / UT representation, DeltaNet (arXiv:2406.06484), Gated DeltaNet (arXiv:2412.06464).

Tensors in chunks are [N B H C ...]: N chunks of C steps, the chunk first, as the walk needs it. A
step may read the memory m times and write to it n times, [N B H C n K]. Its log decay g, one number
[N B H C 1] or one per channel [N B H C K], comes before its reads and writes; -inf is a reset.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.ops.segment_sums import segment_sums

CHUNK = 32
"""Steps in one triangular system: on a CPU 16 is as fast, 64 is slower (docs/log.md)."""
STRETCH = 512
"""Steps worked on at once, so that what lies between two stages stays in the cache."""
SUB = 8
"""Steps whose pairs take one exponential per channel each, where channels decay on their own."""


def chunk_length(T: int, writes: int = 1) -> int:
    """A multiple of SUB near CHUNK / writes, and not much longer than the sequence."""
    return SUB * max(1, min(CHUNK // (SUB * writes), -(-T // SUB)))


def in_chunks(x: Float[Tensor, "B T H *rest"], chunk: int) -> Float[Tensor, "N B H C *rest"]:
    """Cut into chunks. The last one is filled up with zeros, which leave any state as it is."""
    x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, -x.shape[1] % chunk))
    return x.unflatten(1, (-1, chunk)).movedim((1, 0, 3, 2), (0, 1, 2, 3)).contiguous()


def out_of_chunks(x: Float[Tensor, "N B H C V"], T: int) -> Float[Tensor, "B T H V"]:
    """The inverse of `in_chunks`."""
    return x.movedim((0, 1, 2, 3), (1, 0, 3, 2)).flatten(1, 2)[:, :T]


def from_start(g: Float[Tensor, "*N C K"]) -> Float[Tensor, "*N C K"]:
    """What each step still holds of the state at the chunk's start."""
    return g.cumsum(-2).exp()


def to_end(g: Float[Tensor, "*N C K"]) -> Float[Tensor, "*N C K"]:
    """What the chunk's end still holds of each step."""
    return _sums_after(g).exp()


def pair_scores(
    reads: Float[Tensor, "*N C m K"],
    writes: Float[Tensor, "*N C n K"],
    g: Float[Tensor, "*N C #K"],
) -> Float[Tensor, "*N C m C n"]:
    """What read [i, m] meets of write [j, n], decayed from j to i; 0 where j > i."""
    if g.shape[-1] > 1:
        return _scores_by_channel(reads, writes, g)
    kept = segment_sums(g).exp()  # [*N i j 1]
    pairs = reads.flatten(-3, -2) @ writes.flatten(-3, -2).mT
    m, (C, n) = reads.shape[-2], writes.shape[-3:-1]
    return pairs.unflatten(-1, (C, n)).unflatten(-3, (C, m)) * kept[..., None, :, :]


def _scores_by_channel(reads: Tensor, writes: Tensor, g: Tensor) -> Tensor:
    """Decays do not leave the sum over channels, so they are put on its two sides.

    Only exponentials of sums of g, never of their differences: from a write to the start of the
    reader's sub-block on one side, from there to the read on the other. Pairs inside a sub-block
    are worked out one by one.
    """
    m, n = reads.shape[-2], writes.shape[-2]
    reads, writes, g = (
        x.unflatten(dim, (-1, SUB)) for x, dim in ((reads, -3), (writes, -3), (g, -2))
    )  # [*N R i m K], [*N S j n K], [*N R i K]
    kept = segment_sums(g).exp()  # [*N R i j K]
    near = (kept[..., None, :] * writes[..., None, :, :, :]).flatten(-3, -2)  # [*N R i (j n) K]
    near = (near @ reads.mT).unflatten(-2, (SUB, n)).movedim(-1, -3)  # [*N R i m j n]
    between = segment_sums(g.sum(-2))[..., :-1, :, :]  # whole sub-blocks from a write to a read
    between = F.pad(between, (0, 0, 0, 0, 1, 0), value=-torch.inf)  # [*N R S K], none if S >= R
    before = (between[..., None, :] + _sums_after(g)[..., None, :, :, :]).exp()  # [*N R S j K]
    seen = (before[..., None, :] * writes[..., None, :, :, :, :]).flatten(-4, -2)
    far = (from_start(g)[..., None, :] * reads).flatten(-3, -2) @ seen.mT  # [*N R (i m) (S j n)]
    far = far.unflatten(-1, (-1, SUB, n)).unflatten(-4, (SUB, m))  # [*N R i m S j n]
    scores = far.diagonal_scatter(near.movedim(-5, -1), 0, -6, -3)
    return scores.flatten(-6, -5).flatten(-3, -2)


def _sums_after(g: Float[Tensor, "*N C K"]) -> Float[Tensor, "*N C K"]:
    """At j: the sum of g over the steps after j."""
    return F.pad(g[..., 1:, :], (0, 0, 0, 1)).flip(-2).cumsum(-2).flip(-2)


def unit_lower_inverse(x: Float[Tensor, "*N R R"]) -> Float[Tensor, "*N R R"]:
    """The inverse of I + (x below its diagonal), by substitution: no powers of x, which explode."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device).expand_as(x)
    return torch.linalg.solve_triangular(x, eye, upper=False, unitriangular=True)


def walk(
    fresh: Float[Tensor, "N B H R V"],
    held: Float[Tensor, "N B H R K"],
    writes: Float[Tensor, "N B H R K"],
    kept: Float[Tensor, "N B H #K 1"],
    given: Float[Tensor, "N B H #K #V"],
    state: Float[Tensor, "B H K V"],
) -> tuple[Float[Tensor, "N B H K V"], Float[Tensor, "N B H R V"], Float[Tensor, "B H K V"]]:
    """From chunk to chunk: u = fresh + held S, then S = kept S + given + writes^T u.

    Returns the S at each chunk's start, every u, and the last S.
    """
    (N, B, H), S = fresh.shape[:3], state.flatten(0, 1)
    chunks = (x.flatten(1, 2) for x in (fresh, held, writes.mT, kept, given))
    starts: list[Tensor] = []
    us: list[Tensor] = []
    for fresh_c, held_c, writes_c, kept_c, given_c in zip(*chunks, strict=True):
        starts.append(S)
        us.append(torch.baddbmm(fresh_c, held_c, S))
        S = torch.baddbmm(kept_c * S + given_c, writes_c, us[-1])
    heads = (N, B, H)
    every, u = (torch.stack(x).view(*heads, *x[0].shape[1:]) for x in (starts, us))
    return every, u, S.view(B, H, *S.shape[1:])
