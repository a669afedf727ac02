"""Chunked torch forms beside softmax attention and a textbook form, interleaved in one process.

python benchmarks/chunked_forms.py [OUT.json]       B1 T=2048 H=12 K=V=64 float32, all threads

The textbook form of a decay per channel anchors a chunk at its middle, q e^(G - G_mid) times
k e^(G_mid - G): fast, and it overflows for strong decays, which is why it is a peer and not a form.
Every case is checked against `recurrent` (softmax attention aside) before it is timed.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.linear_attention import linear_attention

T, H, K, ROUNDS = 2048, 12, 64, 9
PEER = "softmax attention (flash)"


def textbook(q: Tensor, k: Tensor, v: Tensor, g: Tensor, chunk: int) -> Tensor:
    """Gated linear attention, all chunks at once, the states one after the other."""
    q, k, v, g = (x.unflatten(1, (-1, chunk)).transpose(2, 3) for x in (q, k, v, g))  # B N H C .
    total = g.cumsum(-2)
    middle = total[..., chunk // 2 : chunk // 2 + 1, :]
    scores = (q * (total - middle).exp()) @ (k * (middle - total).exp()).mT
    last = total[..., -1:, :]
    writes = (k * (last - total).exp()).mT @ v
    state, starts = torch.zeros_like(writes[:, 0]), []
    for write, keep in zip(writes.unbind(1), last.mT.exp().unbind(1), strict=True):
        starts.append(state)
        state = keep * state + write
    y = scores.tril() @ v + (q * total.exp()) @ torch.stack(starts, 1)
    return y.transpose(2, 3).flatten(1, 2)


def cases() -> tuple[dict[str, Callable[[], Tensor]], list[Tensor]]:
    """What is timed, by name, and the tensors to derive by."""
    q, k, v = (torch.randn(1, T, H, K, requires_grad=True) for _ in range(3))
    scalar, vector = -torch.rand(1, T, H) / 10, -torch.rand(1, T, H, K) / 10
    beta, unit = torch.rand(1, T, H), F.normalize(k.detach(), dim=-1).requires_grad_()
    heads = [x.transpose(1, 2) for x in (q, k, v)]
    runs = {
        PEER: lambda: F.scaled_dot_product_attention(*heads, is_causal=True),
        "linear_attention, scalar decay": lambda: linear_attention(q, k, v, log_decay=scalar)[0],
        "linear_attention, decay per channel": lambda: linear_attention(q, k, v, log_decay=vector)[
            0
        ],
        "textbook, decay per channel, C32": lambda: textbook(q, k, v, vector, 32),
        "textbook, decay per channel, C64": lambda: textbook(q, k, v, vector, 64),
        "delta_rule, no decay": lambda: delta_rule(q, unit, v, beta=beta)[0],
        "delta_rule, scalar decay": lambda: delta_rule(q, unit, v, beta=beta, log_decay=scalar)[0],
        "delta_rule, decay per channel": lambda: delta_rule(
            q, unit, v, beta=beta, log_decay=vector
        )[0],
    }
    want = linear_attention(q, k, v, log_decay=vector, form="recurrent")[0]
    for name in ("linear_attention, decay per channel", "textbook, decay per channel, C64"):
        torch.testing.assert_close(runs[name](), want, atol=1e-3, rtol=1e-3)
    want = delta_rule(q, unit, v, beta=beta, log_decay=scalar, form="recurrent")[0]
    torch.testing.assert_close(runs["delta_rule, scalar decay"](), want, atol=1e-3, rtol=1e-3)
    return runs, [q, k, v, unit]


def main() -> None:
    """Time in rounds that take turns; medians, and ratios to the peer."""
    torch.manual_seed(0)
    runs, sources = cases()
    times: dict[str, dict[str, list[float]]] = {name: {"fwd": [], "fwd+bwd": []} for name in runs}
    for _ in range(ROUNDS + 1):  # the first warms up
        for name, run in runs.items():
            start = perf_counter()
            with torch.no_grad():
                run()
            times[name]["fwd"].append(perf_counter() - start)
            start = perf_counter()
            run().sum().backward()
            times[name]["fwd+bwd"].append(perf_counter() - start)
            for source in sources:
                source.grad = None
    middle = {
        name: {what: median(taken[1:]) for what, taken in both.items()}
        for name, both in times.items()
    }
    rows = [
        {"case": name}
        | {
            f"{what}, ratio to softmax": round(t / middle[PEER][what], 3)
            for what, t in both.items()
        }
        for name, both in middle.items()
    ]
    for row in rows:
        print("  ".join(f"{value!s:38}" for value in row.values()))
    if len(sys.argv) > 1:
        facts = {"T": T, "heads": H, "K": K, "threads": torch.get_num_threads(), "rounds": ROUNDS}
        Path(sys.argv[1]).write_text(
            json.dumps({"torch": torch.__version__, **facts, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
