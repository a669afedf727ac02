"""What the time of a step says: its calendar, part by part, and the time since the step before.

    phi_d(t) = sum_k  a_dk sin(k t / p_d) + c_dk (cos(k t / p_d) - 1)      k = 1 .. K,  p_d = 10^r_d
    c        = W [phi(year); phi(month); ... phi(hour)]
    x        = e + G[bucket(time since)] + rms(e) g * c / rms(c)            beside an item e

Each of the seven parts of the calendar has d dimensions with periods and coefficients of its own,
all learned; a step whose time is not known adds nothing. Buckets widen with the time, four to a
doubling.
Sources: Xu et al. 2019, arXiv:1911.12864 (Mercer time encoding); Liu, Wang and Feng 2024,
arXiv:2406.18470 (UniRec: the multidimensional time module, calendar and intervals), sizes and
initial values as in its code. There a context stands beside the item, the stack runs once with the
calendar and once with the intervals, and scores are added; here both are added to the item and it
runs once, so that c is kept to the size of the item, times a factor g for each channel that begins
at 0.3: W learns at every step and an item only where it is taken, and would be drowned. The
calendar comes less its mean, and phi has its value at 0 taken out: else long periods add up to one
vector for all steps. There intervals are whole hours up to a year, each with a vector of its own;
buckets of their ratio to the usual one do for clocks that count anything, and learn from little.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.projection import Linear

PARTS = 7
"""Parts of a calendar."""
COLUMNS = PARTS + 2
"""Real inputs: whether the time is known, the parts, the time since the step before."""
BUCKETS = 96


class Mercer(nn.Module):
    """Several numbers at once, each with an encoding of its own.

    Args:
        count: Numbers N.
        dims: Dimensions d of each.
        harmonics: K.
        decades: The first periods lie between 1 and 10 to the power of this.
    """

    def __init__(self, count: int, dims: int, harmonics: int, decades: float = 8.0) -> None:
        super().__init__()
        self.periods = nn.Parameter(torch.linspace(0, decades, dims).repeat(count, 1))
        """r, powers of ten."""
        self.weight = nn.Parameter(torch.empty(count, dims, 2 * harmonics))
        self.harmonics = harmonics
        bound = math.sqrt(6 / (dims + 2 * harmonics))
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, t: Float[Tensor, "... N"]) -> Float[Tensor, "... N d"]:
        """Encode; the sines first, then the cosines."""
        k = torch.arange(1, self.harmonics + 1, device=t.device, dtype=t.dtype)
        angle = t[..., None, None] * (k / 10 ** self.periods[..., None])
        waves = torch.cat([angle.sin(), angle.cos() - 1], -1)
        return (waves * self.weight).sum(-1)


class TimeEncoding(nn.Module):
    """See the module docstring."""

    def __init__(
        self,
        columns: int,
        width: int,
        scale: float | None = None,
        *,
        dims: int = 16,
        harmonics: int = 3,
    ) -> None:
        super().__init__()
        assert columns == COLUMNS
        self.parts = Mercer(PARTS, dims, harmonics)
        self.map = Linear(PARTS * dims, width)
        nn.init.normal_(self.map.weight, std=0.01)
        nn.init.zeros_(self.map.bias)
        self.since = nn.Embedding(BUCKETS, width)
        nn.init.normal_(self.since.weight, std=0.1 * width**-0.5)
        self.scale = math.sqrt(width) if scale is None else scale
        self.gain = nn.Parameter(torch.full((width,), 0.3))

    def forward(
        self, items: Float[Tensor, "B T D"], reals: Float[Tensor, "B T C"]
    ) -> Float[Tensor, "B T D"]:
        """The embedding of each step with its time in it."""
        reals = reals.to(self.map.weight.dtype)
        known, parts, since = reals[..., :1], reals[..., 1:-1], reals[..., -1]
        context = self.map(self.parts(parts).flatten(-2))
        context = F.rms_norm(context, self.gain.shape, eps=1e-8)
        size = items.square().mean(-1, keepdim=True).sqrt()
        return items + known * (self.scale * self.since(bucket(since)) + size * self.gain * context)


def bucket(since: Float[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Which vector stands for a time since the step before, in units of the usual one."""
    return (4 * torch.log2(1 + 16 * since)).floor().clamp(0, BUCKETS - 1).long()
