"""Answers to questions: whether a user gets the next question right.

    inputs    the question asked now, its skill; the question and the skill answered last, each
              together with whether it was right; and five numbers: log(1 + time since the last
              answer), log(1 + time since this skill), log(1 + answers to this skill so far),
              whether there was one, whether the history begins here
    asked     whether it was answered right ("label": 0 or 1), which the inputs of no step up to
              this one hold

So one step holds the pair of a question and its response, as knowledge tracing reads it, and the
question to judge. Whole users are held out: every answer of theirs is asked for, also the first.
Times, gaps and counts as in Nagatani et al. 2019, "Augmenting Knowledge Tracing by Considering
Forgetting Behavior". Id 0 is a question or a skill that training has not shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int

from stepscan.data.base import DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.tables import Table, codes, labels, times

CHANNELS = 5
HELD_OUT = (0.1, 0.2)
"""Of the users: valid, test."""
RIGHT = {"1": 1, "1.0": 1, "true": 1, "yes": 1, "right": 1, "correct": 1}
WRONG = {"0": 0, "0.0": 0, "false": 0, "no": 0, "wrong": 0, "incorrect": 0}
WORDS = RIGHT | WRONG


class Answers(NamedTuple):
    """Answers in order, users one after the other."""

    question: Int[np.ndarray, " N"]
    right: Int[np.ndarray, " N"]
    stamp: Int[np.ndarray, " N"]
    """As in `tables.Times`; the number of the answer where there is no time."""


class Past(NamedTuple):
    """What the next step of a user has to know of the steps before."""

    last: tuple[int, int, int]
    """Question (-1 before the first answer), whether it was right, when."""
    skills: dict[int, tuple[int, int]]
    """Of each skill met: when last, how many times."""


NO_PAST = Past((-1, 0, 0), {})


@dataclass(frozen=True, kw_only=True)
class ResponseSchema(Schema):
    """How answers become inputs."""

    kind: ClassVar[str] = "responses"

    user: str
    """Column names, as in the file the model learned from."""
    question: str
    correct: str
    skill: str | None
    time: str | None
    questions: tuple[str, ...]
    """Question i + 1 of the vocabulary; 0 is one never seen."""
    skills: tuple[str, ...]
    """The same for skills; none where the file has no such column."""
    skill_of: tuple[int, ...]
    """The skill of each question, of 0 first."""
    calendar: bool
    """Times are dates, not plain numbers."""
    unit: float
    """Gaps are measured in this many ticks of `tables.Times`: the median one in training."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """Question, skill, last question with its response, last skill with its response."""
        questions, skills = len(self.questions) + 1, len(self.skills) + 1
        return (questions, skills, 2 * questions + 1, 2 * skills + 1)

    @property
    def reals(self) -> int:
        """See the module docstring."""
        return CHANNELS

    def encode(self, table: Table) -> tuple[Packed, list[str]]:
        """Every user's answers, all asked for; and the users in this order."""
        rows = read_answers(table, self.user, self.question, self.correct, self.time)
        ids = codes(rows.questions, self.questions)
        return self.pack(rows.starts, Answers(ids, rows.right, rows.stamp)), rows.users

    def pack(self, starts: Bool[np.ndarray, " N"], answers: Answers) -> Packed:
        """Answers of one user after another."""
        question, right, stamp = answers
        skill = np.array(self.skill_of)[question]
        user = np.cumsum(starts) - 1
        before = _before(user)
        again = _before(user, skill)
        said = np.zeros((len(question), CHANNELS), np.float32)
        said[:, 0] = np.log1p(self._gap(stamp, before))
        said[:, 1] = np.log1p(self._gap(stamp, again))
        said[:, 2] = np.log1p(_count(user, skill))
        said[:, 3] = again >= 0
        said[:, 4] = starts
        pair = np.where(before >= 0, 1 + 2 * question[before] + right[before], 0)
        skills = np.where(before >= 0, 1 + 2 * skill[before] + right[before], 0)
        tokens = np.stack([question, skill, pair, skills], 1).astype(np.int32)
        return Packed(
            torch.from_numpy(starts),
            tokens=torch.from_numpy(tokens),
            reals=torch.from_numpy(said),
            targets={"label": torch.from_numpy(right.astype(np.int32))},
        )

    def step(self, question: int, stamp: int | None, past: Past) -> tuple[list[int], list[float]]:
        """Tokens and numbers of a question asked at this time, after this past.

        Without a time the question comes when the last answer did; in data without times, a step
        later.
        """
        last, right, when = past.last
        stamp = self._next(past) if stamp is None else stamp
        skill = self.skill_of[question]
        met = past.skills.get(skill)
        begun = last >= 0
        tokens = [
            question,
            skill,
            1 + 2 * last + right if begun else 0,
            1 + 2 * self.skill_of[last] + right if begun else 0,
        ]
        gap = max(0, stamp - when) / self.unit if begun else 0.0
        since = max(0, stamp - met[0]) / self.unit if met else 0.0
        count = met[1] if met else 0
        numbers = [
            np.log1p(gap),
            np.log1p(since),
            np.log1p(count),
            float(bool(met)),
            float(not begun),
        ]
        return tokens, list(map(float, numbers))

    def after(self, question: int, right: int, stamp: int | None, past: Past) -> Past:
        """The past once this question was answered."""
        stamp = self._next(past) if stamp is None else stamp
        skill = self.skill_of[question]
        count = past.skills.get(skill, (0, 0))[1]
        return Past((question, right, stamp), {**past.skills, skill: (stamp, count + 1)})

    def _next(self, past: Past) -> int:
        last, _, when = past.last
        return when + int(self.time is None and last >= 0)

    def _gap(
        self, stamp: Int[np.ndarray, " N"], before: Int[np.ndarray, " N"]
    ) -> Float[np.ndarray, " N"]:
        return np.where(before >= 0, np.maximum(stamp - stamp[before], 0), 0) / self.unit


class Rows(NamedTuple):
    """Answers of a table, users one after the other, each in order of time."""

    starts: Bool[np.ndarray, " N"]
    questions: Any
    right: Int[np.ndarray, " N"]
    stamp: Int[np.ndarray, " N"]
    users: list[str]
    kept: Int[np.ndarray, " N"]
    """Rows of the table."""
    calendar: bool
    findings: tuple[str, ...]


def read_answers(table: Table, user: str, question: str, correct: str, time: str | None) -> Rows:
    """Sort a table by user and time; equal times keep the order of the file."""
    users, questions = labels(table, user, "user"), labels(table, question, "question")
    findings = []
    absent = (users.isna() | questions.isna()).to_numpy()
    if absent.any():
        findings.append(f"{absent.sum():,} rows without a user or a question left out")
    kept = np.flatnonzero(~absent)
    if not len(kept):
        raise DataError(f"{table.name}: no row has both a user and a question")
    right = _right(table, correct)
    if time is None:
        stamp, calendar = np.arange(len(table)), False
        findings.append("there is no time: answers stand in order, gaps are counted in answers")
    else:
        clock = times(table, time)
        stamp, calendar = clock.values, clock.calendar
        findings += clock.findings
    who, names = users.iloc[kept].factorize(sort=True)
    order = np.lexsort((stamp[kept], who))
    kept = kept[order]
    starts = np.diff(who[order], prepend=-1) != 0
    if time is None:  # the number of the answer of its user
        place = np.arange(len(kept))
        stamp = place - np.maximum.accumulate(np.where(starts, place, 0))
    else:
        stamp = stamp[kept]
    return Rows(
        starts,
        questions.iloc[kept],
        right[kept],
        stamp,
        list(map(str, names)),
        kept,
        calendar,
        tuple(findings),
    )


def response_dataset(
    table: Table, options: DataOptions, roles: Mapping[str, str | None], *, name: str
) -> Dataset:
    """Hold users out, encode."""
    user, question, correct = (str(roles[role]) for role in ("user", "question", "correct"))
    skill, time = roles["skill"], roles["time"]
    rows = read_answers(table, user, question, correct, time)
    if len(rows.users) < 3:
        raise DataError(
            f"{name}: want three users at least, to learn from, to choose by and to test on, "
            f"got {len(rows.users)}; check --user"
        )
    part_of = _deal(len(rows.users), options, name)[np.cumsum(rows.starts) - 1]
    train = part_of == 0
    vocabulary = tuple(rows.questions[train].value_counts(sort=False).sort_index().index)
    skills, skill_of = _skills(table, skill, rows, train, vocabulary)
    gaps = np.diff(rows.stamp)[~rows.starts[1:] & train[1:]]
    unit = float(np.median(gaps[gaps > 0])) if (gaps > 0).any() else 1.0
    schema = ResponseSchema(
        user=user,
        question=question,
        correct=correct,
        skill=skill,
        time=time,
        questions=vocabulary,
        skills=skills,
        skill_of=skill_of,
        calendar=rows.calendar,
        unit=unit,
    )
    ids = codes(rows.questions, vocabulary)
    parts = {
        part: schema.pack(
            rows.starts[part_of == i],
            Answers(ids[part_of == i], rows.right[part_of == i], rows.stamp[part_of == i]),
        )
        for i, part in enumerate(("train", "valid", "test"))
    }
    share = rows.right.mean()
    if not 0 < rows.right[train].mean() < 1:
        raise DataError(
            f"{name}: every answer to learn from is {'right' if share else 'wrong'}; check "
            f'--correct, read from column "{correct}"'
        )
    held = {part: int(packed.starts.sum()) for part, packed in parts.items()}
    said = (
        f"{name}   responses  {len(ids):,}   "
        f'user "{user}" ({len(rows.users):,})   question "{question}" ({len(vocabulary):,})   '
        + (f'skill "{skill}" ({len(skills):,})   ' if skill else "")
        + f'correct "{correct}" ({share:.0%} right)'
        + (f'   time "{time}"' if time else ""),
        "task        whether the next question is answered right",
        f"held out    whole users: {held['valid']:,} for choosing, {held['test']:,} for the test",
    )
    findings = list(rows.findings)
    new = int((ids[~train] == 0).sum())
    if new:
        findings.append(f"{new:,} held-out answers are to questions that training does not show")
    return Dataset(name=name, schema=schema, parts=parts, said=said, findings=tuple(findings))


def word_of(cell: Any) -> int:
    """1 for a right answer, 0 for a wrong one; -1 for what is neither."""
    return WORDS.get(str(cell).strip().lower(), -1)


def _right(table: Table, column: str) -> Int[np.ndarray, " N"]:
    cells = table.column(column, "response")
    found = cells.map(word_of).to_numpy(np.int64)
    if (found < 0).any():
        row = int((found < 0).argmax())
        raise DataError(
            f'{table.cell(row, column)}: "{cells.iloc[row]}" is neither right nor wrong. Want 1 '
            "or 0, true or false, right or wrong; name another column with --correct."
        )
    return found


def _deal(users: int, options: DataOptions, name: str) -> Int[np.ndarray, " U"]:
    """0 train, 1 valid, 2 test for each user: a fixed shuffle, so that no order of names counts."""
    valid = HELD_OUT[0] if options.valid is None else options.valid
    test = HELD_OUT[1] if options.test is None else options.test
    if not (0 < valid < 1 and 0 < test < 1 and valid + test < 1):
        raise DataError(
            f"{name}: want fractions of users, valid + test below 1, got {valid} and {test}"
        )
    part = np.zeros(users, np.int64)
    order = np.random.default_rng(0).permutation(users)
    counts = [max(1, round(share * users)) for share in (valid, test)]
    part[order[: counts[0]]] = 1
    part[order[counts[0] : sum(counts)]] = 2
    return part


def _skills(
    table: Table,
    skill: str | None,
    rows: Rows,
    train: Bool[np.ndarray, " N"],
    vocabulary: Sequence[str],
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Skills, and the most frequent one of each question."""
    if skill is None:
        return (), (0,) * (len(vocabulary) + 1)
    import pandas as pd  # noqa: PLC0415

    tags = labels(table, skill, "skill").iloc[rows.kept[train]]
    pairs = pd.DataFrame({"question": rows.questions[train].to_numpy(), "skill": tags.to_numpy()})
    pairs = pairs.dropna().value_counts(sort=True).reset_index()
    usual = pairs.drop_duplicates("question").set_index("question")["skill"]
    names = tuple(sorted(usual.unique()))
    place = {name: i for i, name in enumerate(names, 1)}
    return names, (0, *(place.get(usual.get(question), 0) for question in vocabulary))


def _before(*groups: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The row before this one of the same group, -1 for none."""
    found = np.full(len(groups[0]), -1)
    order = np.lexsort((np.arange(len(found)), *groups[::-1]))
    same = np.ones(max(0, len(found) - 1), bool)
    for group in groups:
        same &= np.diff(group[order]) == 0
    found[order[1:][same]] = order[:-1][same]
    return found


def _count(*groups: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """The number of rows before this one of the same group."""
    size = len(groups[0])
    order = np.lexsort((np.arange(size), *groups[::-1]))
    new = np.ones(size, bool)
    new[1:] = np.any([np.diff(group[order]) != 0 for group in groups], axis=0)
    place = np.arange(size)
    found = np.empty(size, np.int64)
    found[order] = place - np.maximum.accumulate(np.where(new, place, 0))
    return found
