"""Problems in series: covariates that know the future, wild values, moved levels, long gaps."""

from collections.abc import Iterator

import numpy as np

from stepscan.data.base import Dataset
from stepscan.data.panel import Panel, SeriesPacked
from stepscan.data.tables import Table

SAME = 0.97  # correlation of changes: the same series
FEWEST = 50  # changes to tell it by
MOST = 50_000  # steps
USUAL = 4.0  # times the median change
WILD = 15.0  # robust standard deviations
MOVED = 3.0  # of the median of the test part


def copied_future(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """A covariate whose changes are those of the target some steps later.

    Changes are compared, since levels of smooth series agree at any distance. Where the best
    agreement is with the past or with the same step, all is well, unless the covariate is said to
    be known ahead: then it may not be the target at all.
    """
    panel, schema = _panel(dataset), dataset.schema
    reach = min(panel.horizon, 48)
    change = _changes(panel, panel.y.numpy())
    for i, name in enumerate(schema.covariates):  # type: ignore[attr-defined]
        own = _changes(panel, panel.channels[:, i].numpy().astype(float))
        found = {k: _agreement(panel, own, change, k) for k in range(-reach, reach + 1)}
        strongest = max(found.values())
        if strongest < SAME:
            continue
        ahead = next(k for k in sorted(found, key=abs) if found[k] >= strongest - 1e-6)
        known = name in schema.future  # type: ignore[attr-defined]
        if ahead > 0 or (known and ahead == 0):
            what = f"the target {ahead} steps later" if ahead else "the target itself"
            yield (
                f'covariate "{name}" moves as {what} does (correlation of changes '
                f"{strongest:.3f}): a leak, unless it is known so early; leave it out of "
                "--covariates"
            )


def far_values(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """Single values far from all others of their series."""
    panel = _panel(dataset)
    series = panel.series.numpy()
    y = panel.y.numpy()
    away = np.abs(y - panel.center.numpy()[series]) / panel.scale.numpy()[series]
    wild = np.flatnonzero(away > WILD)
    if 0 < len(wild) <= max(1, len(y) // 1_000):
        worst = int(wild[away[wild].argmax()])
        yield (
            f"{len(wild):,} values lie more than {WILD:g} standard deviations (robust) from the "
            f"median of their series, the farthest is {y[worst]:,.6g}{_of(dataset, worst)}"
        )


def moved_level(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """Series whose test part lies elsewhere than their training part."""
    test = dataset.parts["test"]
    assert isinstance(test, SeriesPacked)
    panel, moved = test.panel, {}
    center, scale = panel.center.numpy(), panel.scale.numpy()
    steps = test.steps[test.asked()].numpy()
    y, series = panel.y.numpy()[steps], panel.series.numpy()[steps]
    tested = np.unique(series)
    for i in tested.tolist():
        values = y[(series == i) & ~np.isnan(y)]
        if len(values):
            distance = float((np.median(values) - center[i]) / scale[i])
            if abs(distance) > MOVED:
                moved[i] = distance
    if moved:
        worst = max(moved, key=lambda i: abs(moved[i]))
        name = f' ("{test.names[worst]}")' if test.names[worst] else ""
        yield (
            f"in {len(moved):,} of {len(tested):,} series the test part lies elsewhere than the "
            f"training part, its median up to {abs(moved[worst]):.1f} standard deviations away"
            f"{name}: a trend or a break"
        )


def longest_gap(dataset: Dataset, table: Table | None) -> Iterator[str]:
    """A run of missing steps longer than the horizon."""
    panel = _panel(dataset)
    at = np.arange(len(panel.y))
    run = at - panel.last_seen.numpy()
    inside = at <= _last_values(panel)[panel.series.numpy()]
    run = np.where(inside, run, 0)
    if len(run) and run.max() > panel.horizon:
        end = int(run.argmax())
        yield (
            f"the longest gap is {run.max():,} steps without a value, more than the horizon"
            f"{_of(dataset, int(panel.last_seen[end]) + 1)}"
        )


def _panel(dataset: Dataset) -> Panel:
    packed = dataset.parts["train"]
    assert isinstance(packed, SeriesPacked)
    return packed.panel


def _last_values(panel: Panel) -> np.ndarray:
    seen = np.flatnonzero(~np.isnan(panel.y.numpy()))
    last = np.zeros(len(panel.begin), np.int64)
    np.maximum.at(last, panel.series.numpy()[seen], seen)
    return last


def _changes(panel: Panel, values: np.ndarray) -> np.ndarray:
    """From the step before, in the same series, in units of what is usual in it, at most USUAL of
    them; NaN at a beginning or beside a gap. So no wild value and no large series decides alone.
    """
    change = np.diff(values[:MOST], prepend=np.nan)
    begins = panel.begin.numpy()
    begins = begins[begins < len(change)]
    change[begins] = np.nan
    for piece in np.split(change, begins[1:]):
        known = np.abs(piece[~np.isnan(piece)])
        usual = np.median(known) or known.mean() if len(known) else 0.0
        np.divide(piece, usual or 1.0, out=piece)
    return change.clip(-USUAL, USUAL)


def _agreement(panel: Panel, own: np.ndarray, target: np.ndarray, ahead: int) -> float:
    """Correlation of own[t] with target[t + ahead] in the same series."""
    count = len(own) - abs(ahead)
    a, b = (own[:count], target[ahead:]) if ahead >= 0 else (own[-ahead:], target[:count])
    series = panel.series.numpy()[: len(own)]
    same = series[: len(a)] == series[abs(ahead) : abs(ahead) + len(a)]
    known = same & ~np.isnan(a) & ~np.isnan(b)
    a, b = a[known], b[known]
    if len(a) < FEWEST or not a.std() or not b.std():
        return 0.0
    return float(abs(np.corrcoef(a, b)[0, 1]))


def _of(dataset: Dataset, step: int) -> str:
    """Where a step of the panel is: its time and its series."""
    packed = dataset.parts["train"]
    assert isinstance(packed, SeriesPacked)
    schema, panel = dataset.schema, packed.panel
    name = packed.names[int(panel.series[step])]
    when = ""
    if schema.calendar:  # type: ignore[attr-defined]
        stamp = panel.stamps[step].numpy().astype("datetime64[ns]").astype("datetime64[s]")
        when = f" at {str(stamp).replace('T', ' ')}"
    return when + (f' of "{name}"' if name else "")
