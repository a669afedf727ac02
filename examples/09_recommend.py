"""Who watched what, in order: train a recommender, ask for a new user, for a known one, for all."""

import csv
import random
from pathlib import Path

import stepscan as ss

SERIES = {"rail": 8, "garden": 6, "space": 9}  # seasons are watched one after another


def write_watched(path: Path, users: int = 150) -> None:
    """Columns as RecBole's atomic files have them, with types; tabs between."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["user_id:token", "item_id:token", "timestamp:float"])
        for user in range(users):
            series = draw.choice(list(SERIES))
            season = draw.randint(1, SERIES[series])
            for day in range(draw.randint(4, 14)):
                table.writerow([f"u{user:03}", f"{series} {season}", 20_000 + 7 * day + user])
                if draw.random() < 0.2:
                    series = draw.choice(list(SERIES))
                season = season % SERIES[series] + 1


if __name__ == "__main__":
    write_watched(Path("watched.inter"))
    options = ss.DataOptions(minimum=1)
    small = {"layers": "min_gru", "width": 32, "rows": 16, "length": 16}
    model = ss.fit("watched.inter", options=options, epochs=40, **small)

    again = ss.load(model.about["folder"])
    print("after rail 3, garden 2:")
    for item, score in again.recommend(["rail 3", "garden 2"], top=3):
        print(f"  {item:10} {score:.2f}")
    print("somebody new:", [offer.item for offer in again.recommend([], top=3)])
    print(again.recommend_table(users=["u001", "u002"], top=2, exclude_seen=True))
    print({name: round(value, 3) for name, value in again.evaluate(at=(1, 5)).items()})
