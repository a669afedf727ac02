"""Peak memory of one pass: what the process grows by, in a fresh process for every point.

What a process frees it does not always give back, so a second point in it would count too little.
Runs on Linux, whose kernel keeps the peak and lets a process set it back.
"""

import ctypes
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from stepscan.analyze.speed.ops import SHORT, case_of, check, names, runners
from stepscan.analyze.speed.peers import peers
from stepscan.analyze.speed.rows import AUTO, Plan, Row

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
UNKNOWN = "needs Linux"


def measure(plan: Plan) -> Iterator[Row]:
    """A row for each op, pass and length: what a user gets, and peers."""
    for op in names(plan.ops):
        forms = [AUTO, *(peer.name for peer in peers(op) if plan.with_peers)]
        for what in plan.passes:
            checked = check(plan, op, what)
            for T in plan.lengths:
                for name in forms:
                    expected = checked[name].seconds * T / SHORT
                    found = _point(plan, op, what, T, name, expected)
                    yield {"op": op, "pass": what, "T": T, "form": name} | found


def _point(plan: Plan, op: str, what: str, T: int, name: str, expected: float) -> Row:
    if not RESET.exists():
        return {"peak MB": None, "note": UNKNOWN}
    if expected > plan.patience:
        return {"peak MB": None, "note": f"left out: about {expected:.0f} s"}
    point = json.dumps({"plan": plan, "op": op, "what": what, "T": T, "name": name})
    done = subprocess.run(
        [sys.executable, "-m", __name__, point], capture_output=True, text=True, check=False
    )
    if done.returncode:
        return {"peak MB": None, "note": (done.stderr.strip() or "failed").splitlines()[-1][:80]}
    return {"peak MB": float(done.stdout.split()[-1]) / 2**20, "note": ""}


def growth(plan: Plan, op: str, what: str, T: int, name: str) -> int:
    """Bytes that this process grows by, at the most, during one pass."""
    for length in (SHORT, T):  # the first loads what is loaded once
        case = case_of(plan, op, length)
        (r,) = runners(case, with_peers=plan.with_peers, only=name)
        _give_back()
        RESET.write_text("5")
        before = _kilobytes("VmRSS")
        r.run(what)
        grown = 1024 * (_kilobytes("VmHWM") - before)
    return max(0, grown)


def _give_back() -> None:
    """Freed memory goes back to the system, or a pass would be served from it unseen."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _kilobytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def main(point: str) -> None:
    """What a fresh process does."""
    given = json.loads(point)
    given["plan"] = Plan(*given["plan"])
    sys.stdout.write(f"{growth(**given)}\n")


if __name__ == "__main__":
    main(sys.argv[1])
