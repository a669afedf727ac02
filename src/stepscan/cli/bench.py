"""`stepscan bench`: mixers x tasks, as a picture, a table and sentences."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stepscan.apps.bench import MIXERS, QUICK, QUICK_TASKS, Protocol, Sweep, bench, redraw
from stepscan.apps.bench.hybrid import RATIOS
from stepscan.apps.progress import Voice
from stepscan.apps.report import bench as report
from stepscan.apps.report import heat_map_png
from stepscan.cli.arguments import names, parse
from stepscan.mixers import MIXERS as EVERY_MIXER
from stepscan.tasks import TASKS

ALL = "all"


@dataclass(frozen=True)
class Args:
    """Which memory does a task need? Train mixers on tasks under one protocol, and report.

    Finished trainings are kept: an interrupted run goes on with --resume. Several machines that
    share the folder can work at one run: start it on one, then --resume with --storage on others.
    """

    mixers: str = ",".join(MIXERS)
    """Mixers or patterns of layers, separated by commas; "all" is every causal one."""
    tasks: str = ",".join(QUICK_TASKS)
    """Tasks, separated by commas; "all" is every one."""
    quick: bool = False
    """One learning rate, one seed, 20 seconds each: a first picture."""
    match: Literal["parameters", "state", "width"] | None = None
    """What is equal: parameters, bytes of state after a training sequence, or the width."""
    size: int | None = None
    """How many parameters, bytes, or channels."""
    layers: int | None = None
    """Layers of each mixer."""
    steps: int | None = None
    """Optimizer steps at the most."""
    seconds: float | None = None
    """Seconds of one core that a training takes at the most."""
    rates: str | None = None
    """Peak learning rates of the sweep, separated by commas."""
    seeds: int | None = None
    """Trainings at the best rate."""
    factors: str | None = None
    """Test lengths as multiples of the training length, separated by commas."""
    examples: int | None = None
    """Test examples at each length."""
    budget: Literal["steps", "compute"] | None = None
    """What ends a training: --steps, or --seconds of one core, turned into steps by the measured
    speed of each mixer."""
    self_pretrain: int | None = None
    """Steps in which each model learns the inputs of the task, before the task itself."""
    sweep_hybrid: str | None = None
    """Instead of --mixers: hybrids of these with full attention, separated by commas."""
    ratios: str = ",".join(RATIOS)
    """Of a hybrid sweep: linear to full layers, separated by commas. --layers is 8 unless said."""
    full: str = "attention"
    """Of a hybrid sweep: the mixer of the full layers."""
    workers: int | None = None
    """Processes; left out, one for each core."""
    storage: str | None = None
    """URL of a database for a run on several machines, as in postgresql://host/name."""
    out: Path | None = None
    """The run folder; left out, runs/bench-1 ..."""
    resume: Path | None = None
    """Go on with this run folder."""
    trained: Path | None = None
    """Take finished trainings from this earlier run folder where they are the same: to widen it."""
    redraw: Path | None = None
    """Only write the report of this run folder again."""
    png: Path | None = None
    """Also draw the heat map into this PNG; wants the extra plot."""
    json: bool = False
    """Print the results as JSON and nothing else."""
    quiet: bool = False
    """Print nothing."""


def main(argv: Sequence[str]) -> int:
    """Run the command."""
    args = parse(Args, argv, command="bench")
    if args.png is not None:
        heat_map_png.check(args.png)
    if args.redraw is not None:
        results = redraw(args.redraw)
    else:
        results = bench(
            _mixers(args.mixers),
            tuple(TASKS) if args.tasks == ALL else names(args.tasks),
            protocol=_protocol(args),
            sweep=_sweep(args),
            out=args.out,
            resume=args.resume,
            trained=args.trained,
            storage=args.storage,
            workers=args.workers,
            voice=Voice(quiet=args.quiet or args.json),
        )
    if args.png is not None:
        report.write_png(results, args.png)
    if args.json:
        print(json.dumps(results, indent=2))
    return 0


def _mixers(text: str) -> Sequence[str]:
    if text == ALL:
        return [name for name, config in EVERY_MIXER.items() if config().build(64).causal]
    return names(text)


def _sweep(args: Args) -> Sweep | None:
    if args.sweep_hybrid is None:
        return None
    return Sweep(
        linear=tuple(names(args.sweep_hybrid)),
        ratios=tuple(names(args.ratios)),
        full=args.full,
        **{} if args.layers is None else {"layers": args.layers},
    )


def _protocol(args: Args) -> Protocol:
    fields = (field.name for field in dataclasses.fields(Protocol))
    said: dict[str, Any] = {
        name: value for name in fields if (value := getattr(args, name, None)) is not None
    }
    for name, number in (("rates", float), ("factors", int)):
        if name in said:
            said[name] = _numbers(name, said[name], number)
    return dataclasses.replace(QUICK if args.quick else Protocol(), **said)


def _numbers(name: str, text: str, number: type) -> tuple[Any, ...]:
    try:
        return tuple(number(word) for word in text.split(","))
    except ValueError:
        raise ValueError(
            f"bench: want {name} as numbers separated by commas, got {text!r}"
        ) from None
