"""Token after token: read the prompt at once, then call the model with T = 1 and its own state."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from stepscan.generate.sampling import Sampling
from stepscan.models import Inputs, SequenceModel


@torch.no_grad()
def decode(
    model: SequenceModel,
    prompt: Int[Tensor, "B T"],
    *,
    sampling: Sampling,
    rng: torch.Generator,
    state: Any = None,
    piece: int = 1024,
) -> Iterator[Int[Tensor, "B"]]:
    """Draw tokens without end; the caller stops. The prompt is read in pieces of bounded memory."""
    if not model.causal:
        raise ValueError("generate: this model reads both ways, so it has no next token")
    if not prompt.shape[1]:
        raise ValueError("generate: want at least one token to start from, got none")
    logits: Any = None
    for part in prompt.split(piece, 1):
        logits, state = model(Inputs(tokens=part[..., None]), state)
    while True:
        token = sampling.choose(logits[:, -1], rng)
        yield token
        logits, state = model(Inputs(tokens=token[:, None, None]), state)
