"""Ten million events through fit and predict: memory and speed over a tenth of it.

    python benchmarks/many_events.py                 1 and 10 million events, a process each
    python benchmarks/many_events.py --verbs read    of reading alone, some 40 seconds

A log is made that follows a known process, written to parquet with cases mixed together, as a log
comes from a system. `fit` reads it in pieces, trains for a fixed number of steps, judges; then
`predict_file` answers for every case of a file of the same size. Each size runs in a process of its
own. Memory is sampled every 20 ms: `private` is what the process has for itself (RssAnon);
`resident` adds the pages of files that happen to be cached and can be given back at any time.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from pyarrow import parquet

import stepscan as ss
from stepscan.data.batches import draw
from stepscan.data.open import open_dataset

HERE = Path(__file__).parent
OUT = HERE / "results" / "many_events.json"
ACTIVITIES = 20
CHUNK = 500_000
STEPS = 100


def make_log(path: Path, events: int, seed: int = 0) -> int:
    """Write a log of about so many events; return how many.

    Cases of 2 to 18 events walk through a random Markov chain over ACTIVITIES; CHUNK rows are made
    at a time, in the order of their times.
    """
    rng = np.random.default_rng(seed)
    chain = rng.dirichlet(np.full(ACTIVITIES, 0.2), ACTIVITIES).cumsum(1)
    names = np.array([f"activity {i:02}" for i in range(ACTIVITIES)])
    written, first_case = 0, 0
    writer = None
    while written < events:
        lengths = rng.integers(2, 19, CHUNK // 10)
        case = np.repeat(np.arange(len(lengths)), lengths)
        place = np.arange(len(case)) - np.repeat(lengths.cumsum() - lengths, lengths)
        steps = np.empty(len(case), np.int64)
        now = rng.integers(0, ACTIVITIES, len(lengths))
        for k in range(18):
            at = np.flatnonzero(place == k)
            alive = case[at]
            steps[at] = now[alive]
            moved = (chain[now[alive]] < rng.random(len(alive))[:, None]).sum(1)
            now[alive] = np.minimum(moved, ACTIVITIES - 1)
        gaps = (rng.exponential(3_600, len(case)) + 1).astype(np.int64)
        begun = rng.integers(0, 86_400, len(lengths)) + written // 40
        stamp = 1_700_000_000 + begun[case] + _within(gaps, lengths)
        order = np.argsort(stamp, kind="stable")[: events - written]
        table = pa.table(
            {
                "case": pa.array((first_case + case[order]).astype("U12")),
                "activity": pa.array(names[steps[order]]),
                "time": pa.array(stamp[order] * 1_000_000, pa.timestamp("us")),
            }
        )
        writer = writer or parquet.ParquetWriter(path, table.schema)
        writer.write_table(table)
        written += len(order)
        first_case += len(lengths)
    assert writer is not None
    writer.close()
    return written


def _within(gaps: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Running sums that begin anew with each case."""
    total = gaps.cumsum()
    begins = lengths.cumsum() - lengths
    return total - np.repeat(total[begins], lengths)


class Memory(threading.Thread):
    """Samples this process; `marks` keeps the peaks since the last mark."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.private = self.resident = 0.0
        self.start()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            self.look()
            time.sleep(0.02)

    def look(self) -> None:
        """One sample."""
        lines = Path("/proc/self/status").read_text().splitlines()
        facts = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
        private = int(facts["RssAnon"]) / 1024
        self.private = max(self.private, private)
        self.resident = max(self.resident, private + int(facts["RssFile"]) / 1024)

    def mark(self) -> dict[str, int]:
        """Peaks in MB since the last mark."""
        self.look()
        peaks = {"private_mb": round(self.private), "resident_mb": round(self.resident)}
        self.private = self.resident = 0.0
        return peaks


def read(events: int, folder: Path) -> dict[str, object]:
    """Open the log: two readings, an external sort, packing on disk; then draw some batches."""
    log = folder / "log.parquet"
    memory = Memory()
    make_log(folder / "small.parquet", 5_000)
    options = ss.DataOptions(large=0.0, scratch=str(folder))
    open_dataset(folder / "small.parquet", options)
    found: dict[str, object] = {"file_mb": round(log.stat().st_size / 1e6, 1)}
    found["before"] = memory.mark()
    start, used = time.perf_counter(), time.process_time()
    dataset = open_dataset(log, options)
    seconds = time.process_time() - used
    found["peak"] = {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(seconds, 1),
        "events_per_cpu_second": round(events / seconds),
    } | memory.mark()
    found["cases"] = sum(len(part.begins) for part in dataset.parts.values())
    used = time.process_time()
    for step in range(200):
        draw(dataset.parts["train"], step, rows=8, length=128, seed=0)
    cpu = round(time.process_time() - used, 2)
    return found | {"200 batches": {"cpu_seconds": cpu} | memory.mark()}


def fit(events: int, folder: Path) -> dict[str, object]:
    """Open, train, judge."""
    memory = Memory()
    warm(folder)
    found: dict[str, object] = {"before": memory.mark()}
    start = time.perf_counter()
    model = ss.fit(
        folder / "log.parquet",
        options=ss.DataOptions(large=0.0, scratch=str(folder)),
        out=folder / "run",
        quiet=True,
        steps=STEPS,
        layers="min_gru",
        width=32,
    )
    found["peak"] = {"seconds": round(time.perf_counter() - start, 1)} | memory.mark()
    return found | {"accuracy": model.about["test"]["accuracy"]}


def predict(events: int, folder: Path) -> dict[str, object]:
    """The likeliest next event of every case, from one file to another."""
    memory = Memory()
    model = warm(folder)
    model.predict_file(folder / "small.csv", folder / "small.parquet", top=1)
    model = ss.load(folder / "run")
    found: dict[str, object] = {"before": memory.mark()}
    start = time.perf_counter()
    rows = model.predict_file(
        folder / "log.parquet", folder / "next.parquet", top=1, scratch=str(folder)
    )
    seconds = time.perf_counter() - start
    rate = {"seconds": round(seconds, 1), "events_per_second": round(events / seconds)}
    return found | {"answers": rows, "peak": rate | memory.mark()}


VERBS = {"read": read, "fit": fit, "predict": predict}


def warm(folder: Path) -> ss.Model:
    """Load what is loaded once, on a log of a thousand events."""
    small, rng = folder / "small.csv", np.random.default_rng(0)
    pd.DataFrame(
        {
            "case": rng.integers(0, 100, 1000),
            "activity": rng.choice(list("abc"), 1000),
            "time": pd.date_range("2024-01-01", periods=1000, freq="h"),
        }
    ).to_csv(small, index=False)
    shutil.rmtree(folder / "small", ignore_errors=True)
    return ss.fit(small, out=folder / "small", quiet=True, steps=2, layers="min_gru")


def main() -> None:
    """All sizes; what is in the results already is not measured again."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, action="append")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "many-events")
    parser.add_argument("--size", type=int)
    parser.add_argument("--make", type=Path)
    parser.add_argument("--verb", choices=list(VERBS))
    parser.add_argument("--verbs", nargs="+", choices=list(VERBS), default=list(VERBS))
    asked = parser.parse_args()
    if asked.make is not None:
        make_log(asked.make, asked.size)
        return
    if asked.verb is not None:
        torch.set_num_threads(1)
        print(json.dumps(VERBS[asked.verb](asked.size, asked.folder)))
        return
    sizes = asked.events or [1_000_000, 10_000_000]
    rows = json.loads(OUT.read_text())["rows"] if OUT.exists() else {}
    for events in sizes:
        folder = asked.folder / str(events)
        row = rows.setdefault(str(events), {})
        wanted = [verb for verb in asked.verbs if verb not in row]
        if not wanted:
            continue
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "log.parquet").exists():
            run("--make", str(folder / "part"), "--size", str(events))
            (folder / "part").rename(folder / "log.parquet")
        for verb in wanted:
            if verb == "fit":
                shutil.rmtree(folder / "run", ignore_errors=True)
            said = run("--verb", verb, "--size", str(events), "--folder", str(folder))
            row[verb] = json.loads(said.splitlines()[-1])
            print(events, verb, json.dumps(row[verb], indent=1), flush=True)
            save(rows)
        if set(row) == set(VERBS):
            shutil.rmtree(folder)


def run(*words: str) -> str:
    """This script in a process of its own."""
    command = [sys.executable, __file__, *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def save(rows: dict[str, dict[str, dict]]) -> None:
    """Write what is known, and how memory grows from the smallest to the largest log."""
    result = {
        "command": " ".join(["python", "benchmarks/many_events.py", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {"system": platform.platform(), "threads": 1},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "rows": rows,
    }
    growth = {}
    for verb in VERBS:
        known = sorted(int(events) for events, row in rows.items() if verb in row)
        if len(known) > 1:
            peaks = [rows[str(n)][verb]["peak"]["private_mb"] for n in (known[0], known[-1])]
            more = peaks[1] - peaks[0]
            events = known[-1] - known[0]
            growth[verb] = {
                "from": known[0],
                "to": known[-1],
                "private_mb": more,
                "bytes_per_event": round(2**20 * more / events, 1),
            }
    result["growth"] = growth
    part = OUT.with_name(f".{OUT.name}.part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(OUT)


if __name__ == "__main__":
    main()
