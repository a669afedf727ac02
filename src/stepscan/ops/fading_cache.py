"""The past of attention that forgets: keys, values, and how much each has decayed since.

Shared by `forgetting_attention` and `path_attention`. Decays are summed up in float64 within a
call: differences of long sums decide the scores.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from stepscan.ops.arguments import as_state
from stepscan.ops.positions import positions


class FadingCache(NamedTuple):
    """The visible past, newest last; a row's unused slots come first, zero."""

    keys: Float[Tensor, "B S H K"]
    """As they stand now."""
    values: Float[Tensor, "B S H V"]
    decay: Float[Tensor, "B S H"]
    """Sum of the log decays since each slot."""
    length: Int[Tensor, "B"]
    """Tokens since the row's last reset."""

    GROWS = ("keys", "values", "decay")  # unannotated: a NamedTuple allows no class variables


def as_cache(state: FadingCache | None, k: Tensor, v: Tensor, *others: Tensor) -> FadingCache:
    """The cache as given, checked and wide enough for the inputs; None is an empty one."""
    B, _, H, K = k.shape
    keys, values, decay, length = (None, None, None, None) if state is None else state
    S = 0 if keys is None else keys.shape[1]
    inputs = [x for x in (k, v, *others, keys, values, decay) if x is not None]
    if length is None:
        length = torch.zeros(B, dtype=torch.int64, device=k.device)
    if length.shape != (B,) or length.dtype != torch.int64:
        raise ValueError(
            f"state: want length int64 {(B,)}, got {length.dtype} {tuple(length.shape)}"
        )
    return FadingCache(
        as_state(keys, (B, S, H, K), *inputs),
        as_state(values, (B, S, H, v.shape[-1]), *inputs),
        as_state(decay, (B, S, H), *inputs),
        length,
    )


class Fading:
    """The decays between all queries of a call and all slots, a chunk of queries at a time."""

    def __init__(
        self, log_decay: Float[Tensor, "B T H"], state: FadingCache, resets: Bool[Tensor, "B T"]
    ) -> None:
        self.dtype = log_decay.dtype
        self.slots = state.keys.shape[1]  # before the call
        self.since = log_decay.double().cumsum(1).transpose(1, 2)  # [B H T], from the call's start
        self.until = torch.cat([state.decay.double().transpose(1, 2), -self.since], 2)  # [B H S+T]
        self.place = positions(state.length, resets)

    def scores(self, start: int, end: int) -> Float[Tensor, "B H C S"]:
        """What queries start..end add to their scores of the slots so far: -inf for hidden ones."""
        S, device = self.slots, self.place.device
        slots = torch.arange(S + end, device=device)
        distance = torch.arange(S + start, S + end, device=device)[:, None] - slots
        hidden = (distance < 0) | (distance > self.place[:, start:end, None])  # [B C S]
        decay = self.since[:, :, start:end, None] + self.until[:, :, None, : S + end]
        return decay.to(self.dtype).masked_fill(hidden[:, None], -torch.inf)

    def cache(
        self, keys: Float[Tensor, "B H S K"], values: Float[Tensor, "B H S V"]
    ) -> FadingCache:
        """The state after the call: slots from before a row's last reset hold zeros."""
        length = self.place[:, -1] + 1
        age = torch.arange(keys.shape[2], device=keys.device).flip(0)
        gone = (age >= length[:, None])[:, None]  # [B 1 S+T]
        decay = (self.since[:, :, -1:] + self.until).to(self.dtype).masked_fill(gone, 0.0)
        keys, values = (x.masked_fill(gone[..., None], 0.0) for x in (keys, values))
        keys, values, decay = (x.transpose(1, 2) for x in (keys, values, decay))
        return FadingCache(keys, values, decay, length)
