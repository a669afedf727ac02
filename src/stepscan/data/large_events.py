"""Event logs larger than memory: what `event_dataset` makes, made in pieces and kept on disk.

    pieces     rows grouped by case (`data.pieces`): external buckets, in order of case names
    sorted     each piece in order of case and time; codes and times appended to files
    measured   split, vocabulary, unit and ends, from counts and one number or two a case
    packed     chunk by chunk of whole cases, each part into memory-mapped files (`data.stored`)

The result is that of `event_dataset`, step for step. In memory there are one piece, the different
labels, and some 60 bytes a case. On disk, for a while: the wanted columns once, 8 bytes and 4 a
column for every event, and the packed parts, which remain as long as somebody reads them.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int

from stepscan.data.base import PARTS, DataOptions, Dataset
from stepscan.data.cases import LONG_GAP, Rows, read_rows, split_cases
from stepscan.data.events import Seen, check_asked, describe, ends_known, measured, pack, schema_of
from stepscan.data.order_statistics import order_statistic, quantile
from stepscan.data.pieces import Pieces
from stepscan.data.stored import PartWriter, Workshop

CHUNK = 250_000  # events


def large_event_dataset(
    path: Path, options: DataOptions, roles: Mapping[str, str], *, rows: int = CHUNK
) -> Dataset:
    """Split by case, measure on the training part, encode; with bounded memory.

    Args:
        path: A csv or a parquet file, rows in any order.
        options: As for `event_dataset`.
        roles: Columns for case, activity and time.
        rows: Of a piece: what is in memory at once.
    """
    columns = [*roles.values(), *options.attributes]
    with Workshop(options.scratch) as shop:
        pieces = Pieces(
            path,
            by=roles["case"],
            time=roles["time"],
            columns=columns,
            room=shop.room("buckets"),
            missing=options.missing,
            rows=rows,
        )
        log = _Log(shop.room("sorted"), len(options.attributes) + 1)
        notes = _Notes()
        calendar = False
        for table in pieces:
            calendar = table.clocks[roles["time"]].calendar
            piece, found = read_rows(table, **_named(roles), attributes=options.attributes)
            log.append(piece)
            notes.add(found)
        log.close()
        each = log.one_row_a_case()
        part = split_cases(each, options, path.name)
        seen = Seen(
            vocabularies=log.vocabularies(part == 0),
            unit=measured(*_gap_facts(log, part == 0), calendar=calendar),
            longest=int(log.lengths[part == 0].max()),
        )
        known, how_ends = ends_known(each, options, _unfinished(log))
        schema = schema_of(
            roles, options, seen, calendar=calendar, ends=bool(known.any()), name=path.name
        )
        writers = {name: PartWriter(shop.room(name)) for name in PARTS}
        new = 0
        for cases, chunk in log.chunks(rows):
            of_row = np.repeat(part[cases], log.lengths[cases])
            knows = np.repeat(known[cases], log.lengths[cases])
            for i, writer in enumerate(writers.values()):
                mine = of_row == i
                packed = pack(schema, chunk.take(mine), complete=knows[mine])
                writer.append(packed)
                assert packed.tokens is not None
                new += int((packed.tokens[:, 0] == 0).sum())
        parts = {name: writer.finish() for name, writer in writers.items()}
    check_asked(parts, roles["case"], path.name)
    findings = notes.lines()
    if new:
        findings.append(f"{new:,} held-out events are of an activity the training part never shows")
    counts = [int((part == i).sum()) for i in range(3)]
    return Dataset(
        name=path.name,
        schema=schema,
        parts=parts,
        said=describe(schema, path.name, len(log), counts, options, how_ends),
        findings=(*findings, *pieces.findings),
    )


@dataclass
class _Log:
    """A log in order of case and time, on disk: a code a label, and the time, of every event."""

    room: Path
    columns: int
    _labels: list[dict[str, int]] = field(init=False)
    _facts: list[Int[np.ndarray, "S 3"]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._labels = [{} for _ in range(self.columns)]
        self._codes = (self.room / "codes").open("wb")
        self._stamps = (self.room / "stamps").open("wb")

    def append(self, rows: Rows) -> None:
        """Whole cases, after those before."""
        columns = []
        for known, column in zip(self._labels, rows.ids, strict=True):
            places, different = column.factorize()
            new = np.array([known.setdefault(str(x), len(known)) for x in different], np.int32)
            columns.append(new[places])
        self._codes.write(np.stack(columns, 1).astype(np.int32).data)
        self._stamps.write(rows.stamps.astype(np.int64).data)
        firsts = np.flatnonzero(rows.starts)
        lengths = np.diff(firsts, append=len(rows.case))
        ends = rows.stamps[firsts + lengths - 1] if len(firsts) else rows.stamps[:0]
        self._facts.append(np.stack([lengths, rows.stamps[firsts], ends], 1))

    def close(self) -> None:
        """Everything is written; from here on it is read."""
        self._codes.close()
        self._stamps.close()
        facts = np.concatenate([np.empty((0, 3), np.int64), *self._facts])
        self._facts.clear()
        self.lengths, self.first, self.last = np.ascontiguousarray(facts.T)
        """Of each case: events, time of the first, time of the last."""
        self.begins = np.cumsum(self.lengths) - self.lengths
        self._names = [np.array(list(known), object) for known in self._labels]

    def __len__(self) -> int:
        return int(self.lengths.sum())

    def one_row_a_case(self) -> Rows:
        """The first event of each case: what the split looks at."""
        cases = np.arange(len(self.lengths))
        return Rows(cases, cases, self.first, [])

    def chunks(self, rows: int = CHUNK) -> Iterator[tuple[slice, Rows]]:
        """Runs of whole cases of about so many rows, and which cases they are."""
        import pandas as pd  # noqa: PLC0415

        for cases, codes, stamps in self._raw(rows):
            lengths = self.lengths[cases]
            ids = [
                pd.Series(names.take(codes[:, i]), dtype="str")
                for i, names in enumerate(self._names)
            ]
            which = np.repeat(np.arange(cases.start, cases.stop), lengths)
            yield cases, Rows(which, which, stamps, ids)

    def gaps(self, chosen: Bool[np.ndarray, " S"]) -> Iterator[Int[np.ndarray, " G"]]:
        """Times between events of the chosen cases, chunk by chunk."""
        for cases, _, stamps in self._raw(CHUNK):
            of_row = np.repeat(np.arange(cases.start, cases.stop), self.lengths[cases])
            within = (np.diff(of_row) == 0) & chosen[of_row[1:]]
            yield np.diff(stamps)[within]

    def vocabularies(self, chosen: Bool[np.ndarray, " S"]) -> list[tuple[str, ...]]:
        """The labels of each column in the chosen cases, the most frequent first, then by name."""
        counts = [np.zeros(len(names), np.int64) for names in self._names]
        for cases, codes, _ in self._raw(CHUNK):
            rows = np.repeat(chosen[cases], self.lengths[cases])
            for i in range(self.columns):
                counts[i] += np.bincount(codes[rows, i], minlength=len(counts[i]))
        return [
            tuple(names[i] for i in sorted(np.flatnonzero(n), key=lambda i: (-n[i], names[i])))
            for names, n in zip(self._names, counts, strict=True)
        ]

    def _raw(self, rows: int) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        """Cases, codes and times of runs of whole cases; files are read, not mapped."""
        ends = np.cumsum(self.lengths)
        start = 0
        with (self.room / "codes").open("rb") as codes, (self.room / "stamps").open("rb") as stamps:
            while start < len(ends):
                done = int(ends[start - 1]) if start else 0
                stop = max(start + 1, int(np.searchsorted(ends, done + rows, side="right")))
                count = int(ends[stop - 1]) - done
                code = np.fromfile(codes, np.int32, count * self.columns)
                yield (
                    slice(start, stop),
                    code.reshape(count, self.columns),
                    np.fromfile(stamps, np.int64, count),
                )
                start = stop


def _gap_facts(log: _Log, train: Bool[np.ndarray, " S"]) -> tuple[float, int]:
    """Median and smallest of the positive gaps in the training part; zeros where there is none."""

    def positive() -> Iterator[np.ndarray]:
        for gaps in log.gaps(train):
            yield gaps[gaps > 0]

    sizes = [(len(gaps), int(gaps.min())) for gaps in positive() if len(gaps)]
    count = sum(n for n, _ in sizes)
    if not count:
        return 0.0, 0
    middle = [order_statistic(positive, rank) for rank in ((count - 1) // 2, count // 2)]
    return float(np.mean(middle)), min(least for _, least in sizes)


def _unfinished(log: _Log) -> Bool[np.ndarray, " S"]:
    """As `cases.unfinished`, of each case."""
    every = np.ones(len(log.lengths), bool)
    count = len(log) - len(log.lengths)
    if not count or len(np.unique(log.first)) == 1:
        return ~every
    long = quantile(lambda: log.gaps(every), count, LONG_GAP)
    return log.last > log.last.max() - long


def _named(roles: Mapping[str, str]) -> dict[str, str]:
    return {role: roles[role] for role in ("case", "activity", "time")}


class _Notes:
    """Findings of the pieces: those that count something are added up."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def add(self, lines: Sequence[str]) -> None:
        """Of one piece."""
        for line in lines:
            counted = re.match(r"([\d,]+) (.*)", line)
            if counted:
                self._counts[counted[2]] += int(counted[1].replace(",", ""))
            else:
                self._counts[line] = 0

    def lines(self) -> list[str]:
        """Of all of them."""
        return [f"{count:,} {rest}" if count else rest for rest, count in self._counts.items()]
