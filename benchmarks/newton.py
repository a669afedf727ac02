"""Newton's method for a whole nonlinear recurrence beside the loops: time against length.

python benchmarks/newton.py [--lengths 256,1024] [--rounds 5] [--out FILE.json]

"loop" is the definition, a step after another in Python; "native" our kernel, "torch" torch's own
loop, for the cells that have one. Each form is checked against the definition before it is timed.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from stepscan.analyze.speed import machine
from stepscan.analyze.speed.rounds import in_turns
from stepscan.cli.speed import write
from stepscan.cli.table import show
from stepscan.mixers import MIXERS
from stepscan.ops.cells import cell_scan
from stepscan.ops.newton import EXACT, Problem, rounds

RESULT = Path(__file__).parent / "results" / "newton.json"
FORMS = {"loop": "recurrent", "newton": "newton", "native": "cpu", "torch": "fused"}
SETTINGS = (("para_gru", 64, 1), ("para_lstm", 64, 1), ("para_gru", 256, 4), ("gru", 16, 1))


def run_of(cell: object, x: Tensor, form: str, *, backward: bool) -> Callable[[], Tensor]:
    """Outputs, or the gradient of their sum by x."""

    def forward() -> Tensor:
        with torch.no_grad():
            return cell_scan(cell, x, form=form)[0]

    def both() -> Tensor:
        leaf = x.clone().requires_grad_()
        cell_scan(cell, leaf, form=form)[0].square().sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return both if backward else forward


def rounds_of(cell: object, x: Tensor) -> int:
    """How many rounds the solution takes."""
    fresh = cell.init(len(x))
    for number, (_, worst) in enumerate(rounds(Problem(cell, cell.project(x), fresh, None, fresh))):
        if worst <= EXACT * torch.finfo(x.dtype).eps:
            return number + 1
    raise AssertionError


def main() -> None:
    """A row for each cell, pass and length, as they are measured."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--lengths", default="256,1024,4096,16384")
    words.add_argument("--rounds", type=int, default=7)
    words.add_argument("--seconds", type=float, default=2.0, help="for each form")
    words.add_argument("--out", type=Path, default=RESULT)
    args = words.parse_args()
    warnings.simplefilter("error", RuntimeWarning)  # a fallback is not to be timed as Newton
    rows = []
    for (name, width, batch), backward in ((s, b) for s in SETTINGS for b in (False, True)):
        torch.manual_seed(0)
        cell = MIXERS[name]().build(width).cell()
        forms = {label: form for label, form in FORMS.items() if serves(cell, form)}
        for T in map(int, args.lengths.split(",")):
            x = torch.randn(batch, T, width)
            runs = {n: run_of(cell, x, f, backward=backward) for n, f in forms.items()}
            want = runs["loop"]()
            off = {n: (run() - want).abs().max().item() for n, run in runs.items()}
            assert max(off.values()) < 1e-3 * max(1, want.abs().max().item()), off
            times = in_turns(runs, rounds=args.rounds, budget=args.seconds)
            milliseconds = {f"{n} ms": 1e3 * t.median for n, t in times.items()}
            row = {"cell": name, "width": width, "B": batch, "T": T}
            row |= {"pass": "both" if backward else "forward"} | milliseconds
            ratio = times["loop"].median / times["newton"].median
            row |= {"loop / newton": ratio, "rounds": rounds_of(cell, x)}
            rows.append(row | {"n": times["newton"].count, "off": off["newton"]})
            print(json.dumps(rows[-1]), flush=True)
    show([{f"{n} ms": "-" for n in FORMS} | row for row in rows], as_json=False)
    command = " ".join(["python benchmarks/newton.py", *sys.argv[1:]])
    found = {"command": command, **machine.describe(), "rows": rows}
    write(args.out, json.dumps(found, indent=1) + "\n")


def serves(cell: object, form: str) -> bool:
    """Whether this cell has the form."""
    return {"cpu": hasattr(cell, "native"), "fused": hasattr(cell, "fused")}.get(form, True)


if __name__ == "__main__":
    main()
