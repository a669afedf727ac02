"""What this machine can do at the most, measured where and when the kernels are.

Each rate is the best of a few short runs on all threads: a limit is not missed by being lucky.
Without native kernels the limits are those of torch, and lower than the machine's.
"""

from collections.abc import Callable
from time import perf_counter
from typing import NamedTuple

import torch

from stepscan.analyze.speed.inputs import Work
from stepscan.kernels import available, limits

ROUNDS = 5
IN_CACHE = 4096
"""Numbers: 16 KB, which stay in a first-level cache."""
IN_MEMORY = 1 << 26
"""Numbers: 256 MB, more than most last-level caches hold."""

PRODUCTS = ((2048, 2048, 2048), (2048, 768, 3072))
"""Rows, inner and columns of matrix products: a large one, and a projection of a 130M model."""


class Limits(NamedTuple):
    """Per second, on all threads that torch uses."""

    multiply_adds: float
    exponentials: float
    bytes_read: float

    def binding(self, work: Work, size: float) -> tuple[str, float]:
        """The limit that this much work meets first, and the seconds it takes at the least."""
        seconds = {
            "multiply-add": work.multiply_adds / self.multiply_adds,
            "exp": work.exponentials / self.exponentials,
            "read": size / self.bytes_read,
        }
        name = max(seconds, key=seconds.__getitem__)
        return name, seconds[name]


def measure() -> tuple[Limits, dict[str, float]]:
    """The limits, and all rates they were taken from, in words, for people and files."""
    products, rounded, powers, reads = _products(), _rounded_products(), _powers(), _reads()
    flops, exponentials, bytes_ = (1e9 * max(r.values()) for r in (products, powers, reads))
    return Limits(flops / 2, exponentials, bytes_), {**products, **rounded, **powers, **reads}


def best_of(first: Limits, second: Limits) -> Limits:
    """Of two times the limits were measured."""
    return Limits(*map(max, first, second))


def _products() -> dict[str, float]:
    """Multiply-adds that never leave registers, and matrix products."""
    found: dict[str, float] = {}
    if available("limit_multiply_adds"):
        start, rounds = torch.full((1,), 0.5), 20_000
        done = rounds * limits.MULTIPLY_ADDS * torch.get_num_threads()
        seconds = _best(lambda: limits.limit_multiply_adds(start, rounds))
        found["multiply-adds fp32, GFLOP/s"] = 2e-9 * done / seconds
    return found | _matrix_products(torch.float32)


def _rounded_products() -> dict[str, float]:
    """Only shown: what is computed in float32 is not limited by them."""
    return _matrix_products(torch.bfloat16)


def _matrix_products(dtype: torch.dtype) -> dict[str, float]:
    found: dict[str, float] = {}
    for m, k, n in PRODUCTS:
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        seconds = _best(lambda a=a, b=b: torch.mm(a, b), rounds=3)
        name = str(dtype).removeprefix("torch.")
        found[f"torch.mm {m}x{k}x{n} {name}, GFLOP/s"] = 2e-9 * m * k * n / seconds
    return found


def _powers() -> dict[str, float]:
    """In a first-level cache; torch's own on an array large enough for all threads."""
    found: dict[str, float] = {}
    if available("limit_powers"):
        x, rounds = -10 * torch.rand(IN_CACHE), 1000
        done = rounds * IN_CACHE * torch.get_num_threads()
        found["2^x in cache, G/s"] = 1e-9 * done / _best(lambda: limits.limit_powers(x, rounds))
    x = -10 * torch.rand(16 * IN_CACHE)
    out = torch.empty_like(x)
    seconds = _best(lambda: [torch.exp(x, out=out) for _ in range(20)])
    found["torch.exp, G/s"] = 20e-9 * x.numel() / seconds
    return found


def _reads() -> dict[str, float]:
    """From memory, in as many streams per thread as is best here."""
    x = torch.ones(IN_MEMORY)
    size = 1e-9 * x.numel() * x.element_size()
    found = {"torch.sum of 256 MB, GB/s": size / _best(x.sum)}
    if available("limit_reads"):
        for streams in (1, 2, 4, 8):
            seconds = _best(lambda streams=streams: limits.limit_reads(x, streams))
            found[f"read in {streams} streams, GB/s"] = size / seconds
    return found


def _best(run: Callable[[], object], *, rounds: int = ROUNDS) -> float:
    run()
    times = []
    for _ in range(rounds):
        start = perf_counter()
        run()
        times.append(perf_counter() - start)
    return min(times)
