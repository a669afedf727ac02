"""Several samples of a sequence as one step: long, finely sampled sequences become short ones.

As vision transformers read patches of pixels (Dosovitskiy et al. 2020, arXiv:2010.11929) and
PatchTST stretches of a series (Nie et al. 2022, arXiv:2211.14730); here patches do not overlap, so
that a step is the news of P samples and nothing else, and a stream never reads a sample twice.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def steps_of(samples: Int[Tensor, " S"], patch: int) -> Int[Tensor, " S"]:
    """Steps of sequences of so many samples; the last one may be filled up."""
    return -(-samples // patch)


def fold(
    reals: Float[Tensor, "N C"], samples: Int[Tensor, " S"], patch: int
) -> Float[Tensor, "M D"]:
    """Sequences of samples, end to end, as sequences of steps of P samples: D = P C.

    A last step that is not full repeats the last sample.
    """
    steps = steps_of(samples, patch)
    begins = samples.cumsum(0) - samples
    which = torch.arange(len(samples)).repeat_interleave(steps)
    place = torch.arange(int(steps.sum())) - (steps.cumsum(0) - steps)[which]
    inside = place[:, None] * patch + torch.arange(patch)
    at = begins[which, None] + torch.minimum(inside, samples[which, None] - 1)
    return reals[at].flatten(1)


def unfold(reals: Float[Tensor, "... T D"], patch: int) -> Float[Tensor, "... N C"]:
    """Samples of steps, N = T P; those that filled up a last step stay."""
    shape = (*reals.shape[:-2], reals.shape[-2] * patch, reals.shape[-1] // patch)
    return reals.reshape(shape)


def first_samples(starts: Bool[Tensor, "... T"], patch: int) -> Bool[Tensor, "... N"]:
    """True at the first sample of a step that is marked."""
    found = starts.new_zeros(*starts.shape, patch)
    found[..., 0] = starts
    return found.flatten(-2)
