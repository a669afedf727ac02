"""Loops that show what the machine can do at the most: see limits.cpp.

Each returns one sum per thread, which nobody needs: what counts is how long it takes.
"""

import torch

from stepscan.kernels.operators import define

MULTIPLY_ADDS = 1536
"""Done by each thread in one round of `limit_multiply_adds`."""

limit_multiply_adds = define(
    "limit_multiply_adds(Tensor start, int rounds) -> Tensor",
    allocate=lambda start, rounds: start.new_empty(torch.get_num_threads()),
    sizes=lambda start, rounds: (torch.get_num_threads(),),
)
limit_powers = define(
    "limit_powers(Tensor x, int rounds) -> Tensor",
    allocate=lambda x, rounds: x.new_empty(torch.get_num_threads()),
    sizes=lambda x, rounds: (x.numel(), torch.get_num_threads()),
)
limit_reads = define(
    "limit_reads(Tensor x, int streams) -> Tensor",
    allocate=lambda x, streams: x.new_empty(torch.get_num_threads()),
    sizes=lambda x, streams: (x.numel(), torch.get_num_threads()),
)
