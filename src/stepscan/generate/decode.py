"""Token after token: read the prompt at once, then call the model with T = 1 and its own state.

One row on a CPU goes on without Python between the layers, see `compile_decoder`, wherever the
model can be compiled.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stepscan.generate.compiled import decoder_of
from stepscan.generate.sampling import Sampling
from stepscan.models import Inputs, SequenceModel

WORTH = 16  # tokens from which compiling a small model pays


@torch.no_grad()
def decode(
    model: SequenceModel,
    prompt: Int[Tensor, "B T"],
    *,
    sampling: Sampling,
    rng: torch.Generator,
    state: Any = None,
    piece: int = 1024,
    dtype: str = "fp32",
) -> Iterator[Int[Tensor, "B"]]:
    """Draw tokens without end; the caller stops. The prompt is read in pieces of bounded memory.

    `dtype` is what the weights are rounded to for new tokens, see `compile_decoder`; other than
    fp32 it wants one row and a model that can be compiled.
    """
    if not model.causal:
        raise ValueError("generate: this model reads both ways, so it has no next token")
    if not prompt.shape[1]:
        raise ValueError("generate: want at least one token to start from, got none")
    if dtype != "fp32" and len(prompt) != 1:
        raise ValueError(f"generate: want one row for dtype={dtype}, got {len(prompt)}")
    logits: Any = None
    for part in prompt.split(piece, 1):
        logits, state = model(Inputs(tokens=part[..., None]), state)
    step = _compiled(model, state, dtype) if dtype != "fp32" else None
    drawn = 0
    while True:
        token = sampling.choose(logits[:, -1], rng)
        yield token
        drawn += 1
        if drawn == WORTH and step is None and len(prompt) == 1:
            step = _compiled(model, state, dtype)
        if step is None:
            logits, state = model(Inputs(tokens=token[:, None, None]), state)
        else:
            logits = step(int(token))


def _compiled(
    model: SequenceModel, state: Any, dtype: str
) -> Callable[[int], Float[Tensor, "1 1 V"]] | None:
    """The next step of one row, where there is a quick one."""
    decoder = decoder_of(model, dtype=dtype)
    if decoder is None:
        return None
    decoder.load(state)
    return decoder.step
