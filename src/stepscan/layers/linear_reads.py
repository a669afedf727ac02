"""Two other ways to read a linear memory, by the op that reads it after each write.

`read_before_write`, RWKV's (arXiv:2404.05892):

    y_t = S_{t-1}^T q_t;  S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T

`prefix_read`, JRT-RNN's (arXiv:2407.05483), not causal inside the prefix, the tokens P:

    y_t = (sum_{j <= t} k_j v_j^T + sum_{j in P} k'_j v'_j^T)^T q_t
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from stepscan.ops.arguments import as_resets
from stepscan.ops.linear_attention import linear_attention


def read_before_write(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    log_decay: Float[Tensor, "B T H"] | Float[Tensor, "B T H K"] | None = None,
    state: Float[Tensor, "B H K V"] | None = None,
    resets: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """All writes come one token late; the last of them follows at the end."""
    late_k, late_v = _late(k), _late(v)
    late_g = None if log_decay is None else _late(log_decay)
    last_g = None if log_decay is None else log_decay[:, -1:]
    if resets is not None:
        late_k = late_k.masked_fill(resets[..., None, None], 0.0)  # of the segment before
    y, state = linear_attention(q, late_k, late_v, log_decay=late_g, state=state, resets=resets)
    last = (x[:, -1:] for x in (q, k, v))
    return y, linear_attention(*last, log_decay=last_g, state=state)[1]


def _late(x: Float[Tensor, "B T *rest"]) -> Float[Tensor, "B T *rest"]:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)


def prefix_read(
    q: Float[Tensor, "B T H K"],
    k: Float[Tensor, "B T H K"],
    v: Float[Tensor, "B T H V"],
    *,
    prefix_k: Float[Tensor, "B T H K"],
    prefix_v: Float[Tensor, "B T H V"],
    inside: Bool[Tensor, "B T"],
    state: Float[Tensor, "B H K V"],
    resets: Bool[Tensor, "B T"] | None = None,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """One pass forwards over both sums, and one backwards over the prefix tokens still to come.

    The tokens of a segment's prefix that come in one call see each other; later ones see them all.
    """
    H = q.shape[2]
    resets = as_resets(resets, q)
    prefix_k = prefix_k.masked_fill(~inside[..., None, None], 0.0)
    both = (torch.cat(pair, 2) for pair in ((q, q), (k, prefix_k), (v, prefix_v)))
    start = torch.cat([state, torch.zeros_like(state)], 1)
    y, last = linear_attention(*both, state=start, resets=resets)
    ends = F.pad(resets, (0, 1))[:, 1:].flip(1)  # backwards a segment begins at its last token
    turned = (x.flip(1) for x in (q, prefix_k, prefix_v))
    ahead, _ = read_before_write(*turned, resets=ends)
    y = y[:, :, :H] + y[:, :, H:] + ahead.flip(1)
    return y, last[:, :H] + last[:, H:]
