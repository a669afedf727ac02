"""From data to a model a person can use: read, infer, train within a budget, judge, save."""

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from signal import Signals
from typing import Annotated, Any

import torch
import tyro

from stepscan import state as states
from stepscan.apps import measure, report, runs, warm
from stepscan.apps.candidate import Candidate
from stepscan.apps.compare import as_section, baseline_row
from stepscan.apps.domain import Domain, Metric, Scores, bounded, with_options
from stepscan.apps.interactions.presets import with_clock
from stepscan.apps.kinds import domain_of
from stepscan.apps.model import Model
from stepscan.apps.progress import Voice, clock, size
from stepscan.apps.sources import Data, moved, open_source
from stepscan.data.base import DataOptions
from stepscan.data.open import open_dataset
from stepscan.kernels import kernels
from stepscan.models import Config, SequenceModel, build, read_config
from stepscan.models.folder import recover
from stepscan.train.config import TrainConfig
from stepscan.train.log import METRICS, TensorBoard, read

PLAN = "run.json"


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How to train; what is left out is the recipe of the kind of data."""

    minutes: float | None = None
    """Budget in minutes of training."""
    tokens: int | None = None
    """Budget in tokens (steps of sequence) read."""
    steps: int | None = None
    """Budget in optimizer steps."""
    epochs: float | None = None
    """Budget in passes over the training part, with a look at the validation part after each."""
    patience: int | None = None
    """Stop after so many looks in a row that are no better than the best; left out, never."""
    layers: Annotated[str | None, tyro.conf.arg(aliases=("--mixer",))] = None
    """Layer pattern, such as "(gated_delta_net*3 attention)*2", or the name of a mixer."""
    width: int | None = None
    """Model width."""
    rows: int | None = None
    """Sequences per batch."""
    length: int | None = None
    """Steps per training window."""
    learning_rate: float | None = None
    """Peak of the schedule."""
    dropout: float | None = None
    """Of block outputs."""
    carry: bool = False
    """Carry the state from stretch to stretch (truncated back-propagation through time)."""
    tensorboard: bool = False
    """Draw the training curves for TensorBoard too, into the run folder."""
    bf16: bool = False
    """Matrix products in bfloat16."""
    seed: int = 0
    """Decides the initial weights and the batches."""


class StoppedError(KeyboardInterrupt):
    """Training was asked to stop; what there was is saved. `code` is the exit code to leave."""

    def __init__(self, folder: Path, signal: Signals) -> None:
        super().__init__(f"stopped; to go on: stepscan fit --resume {folder}")
        self.code = 128 + signal


def fit(
    data: Data = "stdlib",
    *,
    options: DataOptions | None = None,
    out: str | os.PathLike[str] | None = None,
    quiet: bool = False,
    voice: Voice | None = None,
    warm_start: str | os.PathLike[str] | None = None,
    **choices: Any,
) -> Model:
    """Train a model on your data, and leave it in a folder.

    Args:
        data: A file, a folder, the name of a data set; or a frame, which is kept in the run folder.
        options: How to read it; what is left out is inferred and said.
        out: The run folder; None makes one under runs/.
        quiet: Say nothing.
        voice: Where to say it; None is standard output.
        warm_start: A run of series to go on from: its model learns on, see `apps.warm`.
        choices: The fields of `FitOptions`: minutes, layers, width ...; else 3 minutes.

    Returns:
        The model with the best weights seen on the validation part. `about["folder"]` is where it
        was saved, with report.html and metrics.jsonl beside it.

    Raises:
        ValueError: the data cannot be read or the options do not fit; the message says what to do.
    """
    voice = voice or Voice(quiet=quiet)
    asked = FitOptions(**choices)
    old = None if warm_start is None else warm.begin(warm_start)
    if old is not None:
        options = warm.reading(old, options)
    options = with_clock(asked.layers, options)
    opened = open_source(data, options, None if old is None else old.schema)
    dataset = opened.dataset
    domain = domain_of(dataset)
    config = _model_config(domain, asked) if old is None else _same_config(old, asked)
    train = _train_config(domain, config, asked)
    if old is not None:
        train = warm.slower(train, old, length=asked.length, rate=asked.learning_rate)
    with torch.device("meta"):  # nothing is written before it is known that this can be built
        build(config)
    folder = runs.new_folder(dataset.name.rsplit(".", 1)[0], out)
    plan = {
        "source": opened.keep(folder),
        "options": None if options is None else dataclasses.asdict(options),
        "model": config.to_dict(),
        "train": dataclasses.asdict(train),
        "tensorboard": asked.tensorboard,
        "versions": runs.versions(),
        "warm_start": None if warm_start is None else runs.source(warm_start),
    }
    runs.write_json(folder / PLAN, plan)
    voice.say(*dataset.lines())
    if old is not None:
        voice.say(warm.line(old, domain))
    return _run(domain, config, train, folder, voice, resume=False)


def resume(
    folder: str | os.PathLike[str], *, quiet: bool = False, voice: Voice | None = None
) -> Model:
    """Go on with a run that was interrupted, exactly where its newest whole checkpoint stands."""
    voice = voice or Voice(quiet=quiet)
    plan = runs.read_json(Path(folder) / PLAN)
    try:
        options = plan["options"] and DataOptions(**runs.tuples(plan["options"]))
        source = moved(plan["source"], Path(folder))
        config = read_config(plan["model"])
        train = TrainConfig(**runs.tuples(plan["train"]))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{Path(folder) / PLAN}: not of this version ({error})") from None
    begun = plan.get("warm_start")
    dataset = open_dataset(source, options or None, warm.begin(begun).schema if begun else None)
    voice.say(*dataset.lines())
    return _run(domain_of(dataset), config, train, Path(folder), voice, resume=True)


def _run(
    domain: Domain,
    config: Config,
    train: TrainConfig,
    folder: Path,
    voice: Voice,
    *,
    resume: bool,
) -> Model:
    plan = runs.read_json(folder / PLAN)
    domain.recipe = with_options(domain.recipe, length=train.length)
    schema, metric = domain.dataset.schema, domain.metrics[0]
    about = {
        "data": domain.dataset.name,
        "metric": metric.name,
        "folder": str(folder),
        "reach": domain.reach,
        **domain.about(),
        **{k: plan[k] for k in ("source", "options")},
        **({"warm_start": plan["warm_start"]} if plan.get("warm_start") else {}),
    }

    def keep(model: SequenceModel, scores: Scores) -> None:
        Model(model, schema, about | {"valid": scores}).save(folder / "model")

    candidate: Candidate | None = None
    board = TensorBoard(folder / "tensorboard") if plan.get("tensorboard") else None

    def show(record: Mapping[str, Any]) -> None:
        if board is not None:
            board(record)
        if candidate is None:  # the trainer notes something while it is being made
            return
        trainer = candidate.trainer
        last = candidate.curve[-1]["score"] if candidate.curve else None
        score = "" if last is None else f"{metric.name} {last:.3f}  "
        rate = trainer.tokens / trainer.seconds if trainer.seconds else 0.0
        left = "" if math.isnan(trainer.seconds_left) else f"left {clock(trainer.seconds_left)}"
        moment = f"{clock(trainer.seconds)}  {score}{rate:,.0f} tokens/s  {left}"
        voice.show(trainer.progress, moment)

    candidate = Candidate(domain, config, train, directory=folder, on_better=keep, log=show)
    trainer = candidate.trainer
    with trainer:
        if plan.get("warm_start"):
            warm.inherit(candidate, warm.begin(plan["warm_start"]).network)
            if not resume:
                candidate.look()  # what there is may stay the best
        if resume:
            _restore(candidate, folder, voice)
        _introduce(candidate.model, config, voice)
        with voice.moving():
            signal = trainer.run()
        if signal is not None:
            raise StoppedError(folder, signal)
        model = candidate.finish()
    if board is not None:
        board.close()
    return _conclude(domain, candidate, model, folder, voice, about)


def _restore(candidate: Candidate, folder: Path, voice: Voice) -> None:
    """The newest checkpoint, the best model so far and the curve up to there."""
    if not candidate.trainer.resume():
        voice.say("no checkpoint yet: from the start")
        return
    best = recover(folder / "model")
    if best.is_dir():
        saved = Model.load(best)
        scores = saved.about.get("valid")
        if isinstance(scores, dict) and candidate.metric.name in scores:
            candidate.remember(saved.network, scores)
    if (folder / METRICS).exists():
        now = candidate.trainer.step
        candidate.recall(r for r in read(folder / METRICS) if r["step"] <= now)


def _conclude(
    domain: Domain,
    candidate: Candidate,
    network: SequenceModel,
    folder: Path,
    voice: Voice,
    about: Mapping[str, Any],
) -> Model:
    """Judge on the test part, beside the simple methods; save, report, say what to do next."""
    domain = bounded(domain)
    scores = domain.score(network, "test")
    simple = list(domain.baselines())
    model = Model(
        network, domain.dataset.schema, {**about, "valid": candidate.best, "test": scores}
    )
    model.save(folder / "model")
    trainer, metric = candidate.trainer, domain.metrics[0]
    look = {k: [point[k] for point in candidate.curve] for k in ("seconds", "tokens", "score")}
    row = {
        "name": " ".join(dict.fromkeys(c.name for c in network.config.mixers)),
        "baseline": False,
        "parameters": measure.parameters(network),
        "config": network.config.to_dict(),
        "scores": {name: [value] for name, value in scores.items()},
        "seconds": [trainer.seconds],
        "tokens": [trainer.tokens],
        "tokens_per_second": [trainer.tokens / max(trainer.seconds, 1e-9)],
        "decode_per_second": measure.decode_per_second(network),
        "state_bytes": measure.state_bytes(network),
        "curve": [{"seed": trainer.config.seed, **look}],
    }
    rows = [row, *(baseline_row(name, values) for name, values in simple)]
    section = as_section(
        domain,
        rows,
        {row["name"]: network},
        minutes=trainer.seconds / 60,
        seeds=[trainer.config.seed],
    )
    found = runs.results(f"stepscan fit {domain.dataset.name}", [section], runs.command_line())
    runs.write_json(folder / "results.json", found)
    report.write(found, folder / "report.html")
    said = "   ".join(f"{name} {value:.3f}" for name, value in scores.items())
    others = "   ".join(f"{name} {values[metric.name]:.3f}" for name, values in simple)
    voice.say(
        f"done        {said}",
        f"beside      {others}   ({metric.name}; {_standing(metric, scores, simple)})",
        f"saved       {folder}   (model, metrics.jsonl, results.json, report.html)",
        f"next        stepscan {NEXT[domain.kind].format(folder)}      open {folder}/report.html",
    )
    return model


NEXT = {
    "text": 'generate {0} --prompt "..."',
    "series": "forecast {0}",
    "events": "predict {0} LAST-EVENTS ...",
    "interactions": "recommend {0} LAST-ITEMS ...",
    "item_texts": "recommend {0} LAST-ITEMS ...",
    "responses": "predict {0} QUESTION=1 ANOTHER=0 ...",
    "labelled": "predict {0} --file NEW.csv",
}


def _introduce(model: SequenceModel, config: Config, voice: Voice) -> None:
    names = " ".join(c.name for c in config.mixers)
    _, state = model(measure.empty_inputs(model, 1))
    voice.say(
        f"model       {names}   width {config.width}   {measure.parameters(model):,} parameters   "
        f"state {size(states.nbytes(state))} per sequence   "
        f"kernels {kernels().level or 'none (torch)'}"
    )


def _standing(metric: Metric, scores: Scores, simple: list[tuple[str, Scores]]) -> str:
    beaten = [metric.wins(scores[metric.name], values[metric.name]) for _, values in simple]
    if all(beaten):
        return "better than all of them"
    return (
        "better than none of them"
        if not any(beaten)
        else f"better than {sum(beaten)} of {len(beaten)}"
    )


def _model_config(domain: Domain, asked: FitOptions) -> Config:
    extra = {} if asked.dropout is None else {"dropout": asked.dropout}
    layers = None if asked.layers is None else domain.pattern(asked.layers)
    return domain.config(layers, asked.width, **extra)


def _same_config(old: Model, asked: FitOptions) -> Config:
    for name in ("layers", "width", "dropout"):
        if getattr(asked, name) is not None:
            raise ValueError(
                f"update: the model of the run learns on as it is; leave out {name}, or fit a new "
                "model"
            )
    return old.network.config


def _train_config(domain: Domain, config: Config, asked: FitOptions) -> TrainConfig:
    budget = {k: v for k in ("minutes", "tokens", "steps") if (v := getattr(asked, k)) is not None}
    names = ("rows", "length", "learning_rate")
    recipe = with_options(
        domain.recipe_for(config), **{name: getattr(asked, name) for name in names}
    )
    if asked.epochs is not None:
        if not asked.epochs > 0:
            raise ValueError(f"fit: want epochs above 0, got {asked.epochs}")
        if budget:
            raise ValueError(f"fit: want epochs or {next(iter(budget))}, not both")
        size = len(domain.dataset.parts["train"])
        steps = math.ceil(asked.epochs * size / (recipe.rows * recipe.length))
        budget = {"steps": steps, "evaluations": max(1, round(asked.epochs))}
    return recipe.training(
        **(budget or {"minutes": 3.0}),
        patience=asked.patience,
        carry=asked.carry,
        precision="bfloat16" if asked.bf16 else "float32",
        seed=asked.seed,
    )
