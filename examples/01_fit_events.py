"""Train on a csv of events, save, load, and ask what happens next, and when."""

import csv
import random
from datetime import datetime, timedelta
from pathlib import Path

import stepscan as ss

# A help desk: a ticket is opened, answered until it is solved, and sometimes opened again.
AFTER = {
    "open": ["assign"],
    "assign": ["answer", "escalate"],
    "answer": ["solve", "question"],
    "question": ["answer"],
    "escalate": ["solve"],
    "solve": ["close", "close", "reopen"],
    "reopen": ["assign"],
}


def write_tickets(path: Path, cases: int = 200) -> None:
    """Columns named as somebody else named them: stepscan says how it reads them."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["ticket", "action", "timestamp"])
        for case in range(cases):
            now = datetime(2026, 1, 5) + timedelta(hours=case)
            action = "open"
            while True:
                table.writerow([f"T{case:04}", action, now.isoformat(sep=" ", timespec="seconds")])
                if action not in AFTER:
                    break
                hours = 20 if action == "question" else 2
                now += timedelta(hours=draw.expovariate(1 / hours))
                action = draw.choice(AFTER[action])


if __name__ == "__main__":
    write_tickets(Path("tickets.csv"))
    model = ss.fit("tickets.csv", steps=80, width=32, layers="min_gru", rows=16, length=64)

    again = ss.load(model.about["folder"])
    print(again)
    for what, probability in again.predict(["open", "assign", "escalate"], top=2):
        print(f"{what:10} {probability:.2f}")
    times = ["2026-03-02 09:00", "2026-03-02 10:30", "2026-03-02 11:00", "2026-03-02 12:00"]
    seconds = again.next_time(["open", "assign", "answer", "question"], times)
    print(f"the answer to a question comes within {seconds / 3600:.1f} hours half of the time")
