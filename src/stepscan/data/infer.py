"""Which kind of data a table holds, and which column is what: from names, then from the cells."""

import re

import numpy as np

from stepscan.data.base import DataError, DataOptions
from stepscan.data.grid import Columns
from stepscan.data.sequences import LabelledColumns, tells_parts
from stepscan.data.tables import Table, is_number, is_time, labels, numbers
from stepscan.names import lookup

TABLE_KINDS = ("series", "events", "interactions", "responses", "labelled")
TELLING = {  # names as `_plain` writes them, the most telling first
    "time": """
        timestamp datetime time ds date timetimestamp starttime starttimestamp eventtime createdat
        timehour when month week day quarter year ts
    """,
    "case": """
        case caseid caseconceptname trace traceid session sessionid patient patientid order orderid
        ticket ticketid
    """,
    "activity": "activity conceptname event eventname eventtype action task status step",
    "user": """
        user userid customer customerid visitor visitorid member memberid student studentid learner
        learnerid
    """,
    "question": """
        question questionid problem problemid exercise exerciseid content contentid item itemid
    """,
    "correct": "correct iscorrect answeredcorrectly correctness",
    "skill": "skill skillid skillname concept conceptid kc tag topic",
    "item": """
        item itemid product productid movie movieid song songid track trackid article articleid sku
        asin book bookid video videoid
    """,
    "id": """
        uniqueid series seriesid id sensor sensorid site siteid sitename station stationid store
        storeid meter meterid device deviceid
    """,
    "target": """
        y target value values demand load sales consumption amount kwh mwh energy power price
        revenue quantity volume count visits traffic
    """,
    "label": "label class classlabel classname",
    "sequence": """
        sequence sequenceid seq seqid recording recordingid trial trialid sample sampleid instance
        caseid uniqueid id
    """,
    "order": "step t index frame position",
    "part": "split part subset",
}


FEW = 20  # words of a static column that is found and not named


def kind_of(table: Table, options: DataOptions) -> str:
    """As told, by the columns named, or by what the columns are called and hold."""
    if options.kind is not None:
        lookup(dict.fromkeys(TABLE_KINDS), options.kind, kind="kind of table")
        return options.kind
    for kind, told, roles in (
        ("labelled", options.label or options.answer, ()),
        ("responses", options.question or options.correct, ("user", "question", "correct")),
        ("events", options.case or options.activity, ("case", "activity")),
        ("interactions", options.user or options.item or options.items, ("user", "item")),
        ("series", options.target or options.id, ()),
    ):
        named = roles and not _any_told(options) and all(_named(table, role) for role in roles)
        if told or named:
            return kind
    if not _any_told(options) and _has_labels(table):
        return "labelled"
    if any(is_number(table, column) for column in table.columns):
        return "series"
    raise DataError(
        f"{table.name}: no usable column: want numbers to forecast, or case and activity, or user "
        f"and item. Columns: {', '.join(table.columns)}. Name them, as in --target NAME"
    )


def _any_told(options: DataOptions) -> bool:
    told = (options.case, options.activity, options.user, options.item, options.target, options.id)
    return any(told)


def event_roles(table: Table, options: DataOptions) -> dict[str, str]:
    """Columns for case, activity and time."""
    time = _time(table, options)
    case = _role(table, "case", options.case, "the column that tells cases apart")
    activity = _role(table, "activity", options.activity, "the column with what happened")
    return {"case": case, "activity": activity, "time": time}


def interaction_roles(table: Table, options: DataOptions) -> dict[str, str]:
    """Columns for user, item and time."""
    user = _role(table, "user", options.user, "the column with the user")
    item = _role(table, "item", options.item, "the column with the item")
    return {"user": user, "item": item, "time": _time(table, options)}


def response_roles(table: Table, options: DataOptions) -> dict[str, str | None]:
    """Columns for user, question, correctness; for skill and time where there are any."""
    user = _role(table, "user", options.user, "the column with the user")
    question = _role(table, "question", options.question, "the column with the question")
    correct = _role(table, "correct", options.correct, "whether an answer was right")
    skill = options.skill
    if skill is None:
        skill = next((c for c in _named(table, "skill") if c != question), None)
    else:
        table.column(skill, "skill")
    roles = {"user": user, "question": question, "correct": correct, "skill": skill}
    return {**roles, "time": _optional_time(table, options)}


def item_column(table: Table, like: str) -> str:
    """The column of a catalogue with the ids of items, called as in the interactions or alike."""
    same = [column for column in table.columns if _plain(column) == _plain(like)]
    return next(iter(same), None) or _role(table, "item", None, "the column with the item")


def labelled_columns(table: Table, options: DataOptions) -> tuple[LabelledColumns, list[str]]:
    """Columns of labelled sequences, and what was noticed on the way.

    The channels are those named by `covariates`, or every column that has no other part to play:
    numbers as they are, and text as categories where it does not say the same in a whole sequence.
    """
    label = _role(table, "label", options.label, "the column with the label of a sequence")
    id_ = options.id or next((c for c in _named(table, "sequence") if c != label), None)
    if id_ is None:
        raise DataError(
            f"{table.name}: cannot tell the column that tells sequences apart; name it with --id. "
            f"Columns: {', '.join(table.columns)}"
        )
    table.column(id_, "id")
    order = [c for c in _named(table, "order") if c != label and is_number(table, c)]
    time = options.time or _optional_time(table, options) or next(iter(order), None)
    part = next((c for c in _named(table, "part") if tells_parts(table, c)), None)
    if options.group is not None:
        table.column(options.group, "group")
    taken = {label, id_, time, part, options.group}
    findings: list[str] = []
    if options.covariates is not None:
        for column in options.covariates:
            table.column(column, "channel")
        words = [c for c in options.covariates if not is_number(table, c)]
        channels = [c for c in options.covariates if c not in words]
    else:
        rest = [c for c in table.columns if c not in taken]
        channels = [c for c in rest if is_number(table, c)]
        words = [c for c in rest if c not in channels and not labels(table, c, "").isna().all()]
        empty = [c for c in rest if c not in channels and c not in words]
        findings += [f'column "{c}" holds no values: left out' for c in empty]
        fixed = [c for c in words if table.frame.groupby(id_)[c].nunique(dropna=False).max() < 2]
        words = [c for c in words if c not in fixed]
        findings += [
            f'column "{c}" is the same in all steps of a sequence: left out; '
            "to read it, name the channels with --covariates"
            for c in fixed
        ]
    if not channels and not words:
        raise DataError(
            f"{table.name}: want channels: columns of numbers or categories beside the id, the "
            f"time and the label. Columns: {', '.join(table.columns)}"
        )
    columns = LabelledColumns(
        id=id_,
        time=time,
        label=label,
        channels=tuple(channels),
        words=tuple(words),
        part=part,
        group=options.group,
    )
    return columns, findings


def _has_labels(table: Table) -> bool:
    """A column of labels, the same in all rows of a sequence, of sequences of several rows."""
    label, ids = _named(table, "label")[:1], _named(table, "sequence")[:1]
    if not label or not ids or label == ids:
        return False
    found = table.frame.groupby(ids[0])[label[0]].nunique()
    return len(found) * 2 <= len(table) and bool((found <= 1).all())


def series_columns(table: Table, options: DataOptions) -> tuple[Columns, list[str]]:
    """Columns of series, and what was noticed on the way.

    The target is the column named, or one with a telling name, or in a table of several series the
    first numeric column; the others are covariates, or static where they never change within a
    series. A table of one series without any of these is wide: every numeric column is a series of
    its own.
    """
    time = _optional_time(table, options)
    if options.id is not None:
        table.column(options.id, "series")
    told = [c.strip() for c in (options.target or "").split(",") if c.strip()]
    named = [*(options.covariates or ()), *options.future, *told]
    for column in named:
        table.column(column, "target" if column in told else "covariate")
    id_ = options.id or _id(table, time, named)
    numeric = [
        c for c in table.columns if c not in (time, id_) and (c in named or is_number(table, c))
    ]
    static = _static(table, options, id_, [time, *named])
    numeric = [c for c in numeric if c not in static]
    counting = [c for c in numeric if c not in named and _counts_rows(table, c)]
    numeric = [c for c in numeric if c not in counting]
    target = told or _named(table, "target", numeric)[:1] or ([] if id_ is None else numeric[:1])
    wide = not target
    if wide:
        target = [c for c in numeric if c not in named]
    if not target:
        raise DataError(
            f"{table.name}: no usable column: want numbers to forecast. Columns: "
            f"{', '.join(table.columns)}. Name one with --target"
        )
    findings = [f'column "{c}" only counts rows: left out' for c in counting]
    covariates: list[str] = []
    for column in numeric:
        chosen = column in named or (options.covariates is None and not wide and len(target) == 1)
        if column in target or not chosen:
            continue
        if column not in named and _constant(table, column):
            findings.append(f'column "{column}" never changes: left out')
            continue
        covariates.append(column)
    static = [c for c in static if c not in target]
    columns = Columns(
        id_, time, tuple(target), tuple(covariates), tuple(options.future), tuple(static)
    )
    return columns, findings


def _static(
    table: Table, options: DataOptions, id_: str | None, taken: list[str | None]
) -> list[str]:
    """Columns with one value a series: those named, or those that are so and say something.

    Words that tell every series apart, such as its title, say nothing of another one.
    """
    for column in options.static or ():
        table.column(column, "static")
        if id_ is None:
            raise DataError(
                f'{table.name}: "{column}" as a static column wants several series; name the '
                "column that tells them apart with --id"
            )
        if column in taken or column == id_:
            raise DataError(f'{table.name}: column "{column}" is static and something else too')
    if options.static is not None or options.covariates is not None or id_ is None:
        return list(options.static or ())
    ids = labels(table, id_, "series")
    found = []
    telling = set(_named(table, "target"))
    for column in table.columns:
        if column in taken or column == id_ or column in telling:
            continue
        cells = labels(table, column, "static")
        different = cells.nunique()
        most = ids.nunique() if is_number(table, column) else min(FEW, ids.nunique() // 2)
        if 2 <= different <= most and cells.groupby(ids).nunique().max() == 1:
            found.append(column)
    return found


def _plain(column: str) -> str:
    """Lower case letters and digits; "user_id:token" (atomic files) is "userid"."""
    return re.sub(r"[^a-z0-9]", "", re.sub(r":(token|float)(_seq)?$", "", column.lower()))


def _named(table: Table, role: str, among: list[str] | None = None) -> list[str]:
    """Columns with a name that tells this role, the most telling first."""
    plain = {column: _plain(column) for column in (table.columns if among is None else among)}
    return [column for name in TELLING[role].split() for column in plain if plain[column] == name]


def _role(table: Table, role: str, told: str | None, what: str) -> str:
    if told is not None:
        table.column(told, role)
        return told
    found = _named(table, role)
    if found:
        return found[0]
    raise DataError(
        f"{table.name}: cannot tell {what}; name it with --{role}. "
        f"Columns: {', '.join(table.columns)}"
    )


def _optional_time(table: Table, options: DataOptions) -> str | None:
    if options.time is not None:
        table.column(options.time, "time")
        return options.time
    named = [c for c in _named(table, "time") if is_time(table, c) or is_number(table, c)]
    dated = [c for c in table.columns if c not in named and is_time(table, c)]
    # a real date beats a name: "year" beside "date" is only a part of it
    return next(iter([c for c in named if is_time(table, c)] + dated + named), None)


def _time(table: Table, options: DataOptions) -> str:
    found = _optional_time(table, options) or next(iter(_named(table, "time")), None)
    if found is None:
        raise DataError(
            f"{table.name}: cannot tell the column with the time; name it with --time. "
            f"Columns: {', '.join(table.columns)}"
        )
    return found


def _id(table: Table, time: str | None, taken: list[str]) -> str | None:
    """A column that tells series apart: by its name, or text that repeats over the same times."""
    if time is None:
        return None
    repeats = bool(table.frame[time].duplicated().any())
    for column in _named(table, "id"):
        if column != time and column not in taken and (repeats or not is_number(table, column)):
            return column
    if not repeats:
        return None
    texts = [c for c in table.columns if c != time and c not in taken and not is_number(table, c)]
    for column in texts:
        if not table.frame.duplicated([time, column]).any():
            return column
    return None


def _counts_rows(table: Table, column: str) -> bool:
    cells = table.frame[column].head(1000)
    if not is_number(Table(table.frame.head(1000), table.name, table.missing), column):
        return False
    values = numbers(Table(cells.to_frame(), table.name, table.missing), column)
    return len(values) > 2 and bool((np.diff(values) == 1).all())


def _constant(table: Table, column: str) -> bool:
    return labels(table, column, "covariate").dropna().nunique() < 2
