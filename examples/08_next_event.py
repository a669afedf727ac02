"""Open cases of a log: what comes next, when they end, and how; beside the simple methods."""

import json
import runpy
from pathlib import Path

import pandas as pd

import stepscan as ss

if __name__ == "__main__":
    tickets = runpy.run_path(str(Path(__file__).parent / "01_fit_events.py"))
    tickets["write_tickets"](Path("tickets.csv"), cases=400)
    model = ss.fit("tickets.csv", steps=300, width=32, layers="min_gru", rows=16, length=64)

    history = ["open", "assign", "answer", "question"]
    times = ["2026-03-02 09:00", "2026-03-02 10:30", "2026-03-02 11:00", "2026-03-02 12:00"]
    print("next      ", [f"{p.what} {p.probability:.2f}" for p in model.predict(history, top=2)])
    print(f"after      {model.next_time(history, times) / 3600:.1f} hours")
    print(f"done after {model.remaining_time(history, times) / 3600:.1f} hours")
    best = model.suffix(history, times)[0]
    for what, seconds in zip(best.what, best.times, strict=True):
        print(f"           {what:8} at {seconds / 3600:5.1f} hours")
    print("likeliest ", [" ".join(way.what) for way in model.suffix(history, times, beams=2)])

    log = pd.read_csv("tickets.csv")
    undone = log[~log["action"].isin(["solve", "close", "reopen"])].groupby("ticket").head(4)
    left = model.predict_table(undone, what="remaining")
    slow = max(left, key=left.__getitem__)
    print(f"of {len(left)} open cases, {slow} has longest to go: {left[slow] / 3600:.1f} hours")

    results = json.loads((Path(model.about["folder"]) / "results.json").read_text())
    for row in results["sections"][0]["candidates"]:
        scores = {name: round(values[0], 3) for name, values in row["scores"].items()}
        print(f"{row['name']:18} {scores['accuracy']:.3f}  {scores['suffix similarity']:.3f}")
