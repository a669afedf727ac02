"""The demo: models compared on three real data sets, then what the best of them say."""

import argparse
from pathlib import Path

import stepscan as ss
from stepscan.data.open import open_dataset

DATA = ("shakespeare", "elecdemand", "flights")
WIDE = 44  # letters across the picture of the forecast


def best(results: dict, data: str) -> tuple[str, ss.Model]:
    """The trained model that leads on a data set, and its name."""
    (section,) = (s for s in results["sections"] if s["data"]["name"] == data)
    metric = section["metric"]
    better = {m["name"]: m["better"] for m in section["metrics"]}[metric]
    scores = {}
    for row in section["candidates"]:
        values = [v for v in row["scores"].get(metric, []) if v is not None]
        if values and not row["baseline"]:
            scores[row["name"]] = sum(values) / len(values)
    name = (min if better == "lower" else max)(scores, key=scores.__getitem__)
    folder = Path(results["folder"]) / "models" / data
    models = (ss.load(path) for path in sorted(folder.iterdir()))
    return name, next(model for model in models if model.about["candidate"] == name)


def draw(low: list[float], middle: list[float], high: list[float], times: list[str]) -> None:
    """A line for every fourth step: the band as dashes, the median as an o."""
    least, most = min(low), max(high)

    def place(value: float) -> int:
        return round((WIDE - 1) * (value - least) / (most - least))

    for a, b, c, when in list(zip(low, middle, high, times, strict=True))[::4]:
        line = [" "] * WIDE
        line[place(a) : place(c) + 1] = "-" * (place(c) + 1 - place(a))
        line[place(b)] = "o"
        print(f"  {when}  {b:6.2f}  |{''.join(line)}|")


def main() -> None:
    """Compare, then show what the best models say."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--minutes", type=float, default=0.3, help="training of each model and seed")
    words.add_argument("--seeds", type=int, default=2)
    words.add_argument("--mixers", default="gated_delta_net,mamba2,attention,lstm")
    words.add_argument("--out", default=None, help="a new folder; left out, one under runs/")
    args = words.parse_args()
    mixers = [name.strip() for name in args.mixers.split(",")]
    results = ss.compare(DATA, mixers, minutes=args.minutes, seeds=args.seeds, out=args.out)

    name, model = best(results, "shakespeare")
    print(f"\n{name} writes, after ROMEO:\n")
    print("ROMEO:" + model.generate("ROMEO:", length=300, temperature=0.8, seed=0))

    name, model = best(results, "elecdemand")
    frame = model.forecast(open_dataset("elecdemand"))
    print(f"\n{name} forecasts the electricity demand of a day in GW, with the band of 80 %:\n")
    draw(*(frame[level].tolist() for level in ("0.1", "0.5", "0.9")), frame["time"].tolist())

    name, model = best(results, "flights")
    history = ["LGA>ATL", "LGA>ORD", "LGA>ATL"]
    said = "   ".join(f"{p.what} {p.probability:.2f}" for p in model.predict(history))
    print(f"\n{name} expects, after {' '.join(history)}:   {said}")

    folder = results["folder"]
    print(f"\nreport     {folder}/report.html")
    print(f"models     {folder}/models      in Python: stepscan.load(...)")
    print("your data  stepscan fit your.csv --minutes 3")


if __name__ == "__main__":
    main()
