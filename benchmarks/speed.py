"""Everything that `stepscan speed` measures, in full: speed.json and speed.svg in results/.

python benchmarks/speed.py [OPTIONS OF stepscan speed]      about ten minutes, nothing else running

The same command with --quick takes two minutes, and shows that it works. Decoding and training
have scripts of their own here. Peers come with `pip install -e '.[bench]'`.
"""

import json
import sys
import tempfile
from pathlib import Path

from stepscan.apps.report.speed import picture
from stepscan.cli import speed

RESULTS = Path(__file__).parent / "results"
OPS = ["--lengths", "512,2048,8192", "--backward", "--seconds", "0.15", "--patience", "10"]
MODELS = ["--ops", "linear_scan", "--lengths", "512,2048", "--models", "--backward"]
MODELS += ["--seconds", "0.2"]
MEMORY = ["--lengths", "2048,8192", "--backward", "--memory", "--rounds", "1", "--patience", "5"]
WEIGHED = "selective_scan,linear_attention decay,delta_rule decay"
QUICK = ["--lengths", "256,1024", "--backward", "--seconds", "0.03", "--patience", "0.5"]
DRAWN = ("selective_scan", "linear_attention decay", "delta_rule decay")


def measured(*options: str) -> dict:
    """What one run of the command found."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "speed.json"
        if speed.main([*options, "--out", str(out)]):
            raise SystemExit("a form differs from its definition: see the notes above")
        return json.loads(out.read_text())


def main(options: list[str]) -> None:
    """Ops first, then layers and models, then memory; one file for all."""
    quick = "--quick" in options
    options = [word for word in options if word != "--quick"]
    found = measured(*(QUICK if quick else OPS), *options)
    if not quick:
        models = measured(*MODELS, *options)
        found["limits later"] = models["limits"]  # the machine may have changed its pace
        found["rows"] += [row for row in models["rows"] if row["op"].split()[0] in speed.WHOLE]
        found["memory"] = measured(*MEMORY, "--ops", WEIGHED, *options)["memory"]
    found["command"] = " ".join(["python benchmarks/speed.py", *sys.argv[1:]])
    speed.write(RESULTS / "speed.json", json.dumps(found, indent=1) + "\n")
    drawn = [row for row in found["rows"] if row["op"] in DRAWN]
    speed.write(RESULTS / "speed.svg", picture(drawn or found["rows"]) + "\n")
    print(f"\nwritten  {RESULTS}/speed.json, speed.svg")


if __name__ == "__main__":
    main(sys.argv[1:])
