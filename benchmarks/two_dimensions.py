"""Mixers of images: time against the number of patches, and one scan against two.

python benchmarks/two_dimensions.py [--sides 16,32,64] [--rounds 7] [--width 64] [--out FILE.json]

One thread, all in one process, in turns; medians of CPU time, so that what else the machine does
counts little. At each side: a bi_gla layer in a grid, beside one of softmax attention over all
patches (torch's); a factor is the time over that of half the side, four times fewer tokens. At the
last side: LightNet's one sum over all tokens beside the two scans of GLA both ways, each between
the same projections, norm and gate.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.analyze.speed import machine
from stepscan.cli.speed import write
from stepscan.cli.table import show
from stepscan.mixers import MIXERS
from stepscan.ops.linear_attention import linear_attention

RESULT = Path(__file__).parent / "results" / "two_dimensions.json"
HEADS = 4


class Attention(nn.Module):
    """Softmax attention of every patch over all patches, as a vision transformer has it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        q, k, v = (p.unflatten(2, (HEADS, -1)).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(1, 2).flatten(2)), None


class TwoWays(nn.Module):
    """GLA forwards and GLA backwards over the same queries, keys and values: two scans."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gla = MIXERS["gla"](heads=HEADS, key_ratio=1.0).build(width)
        self.back = nn.Sequential(nn.Linear(width, 16, bias=False), nn.Linear(16, width))

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        heads = lambda p: p.unflatten(2, (HEADS, -1))  # noqa: E731
        q, k, v = map(heads, self.gla.qkv(x).chunk(3, -1))
        ahead, back = (heads(F.logsigmoid(g(x)) / 16) for g in (self.gla.decay, self.back))
        y, _ = linear_attention(q, k, v, log_decay=ahead)
        turned = (p.flip(1) for p in (q, k, v))
        y = y + linear_attention(*turned, log_decay=back.flip(1))[0].flip(1)
        return self.gla.out(self.gla.norm(y).flatten(2) * F.silu(self.gla.gate(x))), None


def run_of(module: nn.Module, x: Tensor, *, backward: bool) -> Callable[[], object]:
    """A forward pass, or one with the gradients of all weights."""

    def forward() -> None:
        with torch.no_grad():
            module(x)

    def both() -> None:
        module.zero_grad()
        module(x)[0].square().sum().backward()

    return both if backward else forward


def in_turns(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each; the first round warms up."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = process_time()
            run()
            if number:
                times[name].append(process_time() - start)
    return {name: median(found) for name, found in times.items()}


def main() -> None:
    """A row for each side and pass."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--sides", default="16,32,64")
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--width", type=int, default=64)
    words.add_argument("--out", type=Path, default=RESULT)
    args = words.parse_args()
    sides, width, rows = [int(side) for side in args.sides.split(",")], args.width, []
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for backward in (False, True):
        runs: dict[str, Callable[[], object]] = {}
        for side in sides:
            x = torch.randn(1, side * side, width)
            cases: dict[str, nn.Module] = {
                "bi_gla": MIXERS["bi_gla"](rows=side, columns=side, heads=HEADS).build(width),
                "attention": Attention(width),
            }
            if side == sides[-1]:
                cases["one scan"] = MIXERS["lightnet"](heads=HEADS, causal=False).build(width)
                cases["two scans"] = TwoWays(width)
            runs |= {f"{n} {side}": run_of(c, x, backward=backward) for n, c in cases.items()}
        times = in_turns(runs, args.rounds)
        milliseconds = {name: 1e3 * seconds for name, seconds in times.items()}
        for before, side in zip([None, *sides], sides, strict=False):
            row: dict[str, object] = {"pass": "both" if backward else "forward", "side": side}
            for name in ("bi_gla", "attention"):
                row[f"{name} ms"] = now = milliseconds[f"{name} {side}"]
                row[f"{name} factor"] = now / milliseconds[f"{name} {before}"] if before else None
            if side == sides[-1]:
                one, two = (milliseconds[f"{name} {side}"] for name in ("one scan", "two scans"))
                row |= {"one scan ms": one, "two scans ms": two, "one / two": one / two}
                row["one / bi_gla"] = one / milliseconds[f"bi_gla {side}"]
            rows.append(row)
            print(json.dumps(row), flush=True)
    columns = dict.fromkeys(rows[-1], "-")
    show(
        [{**columns, **{k: v for k, v in r.items() if v is not None}} for r in rows], as_json=False
    )
    command = " ".join(["python benchmarks/two_dimensions.py", *sys.argv[1:]])
    found = {"command": command, "width": width, "rounds": args.rounds, "threads": 1}
    found |= {**machine.describe(), "rows": rows}
    write(args.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
