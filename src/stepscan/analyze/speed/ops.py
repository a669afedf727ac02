"""Times of ops: every form, and what a user gets without asking for one, beside peers.

Nothing is timed before it was found right: on a short stretch against the definition, in value
and, where gradients are timed, in gradient; then at full length against the form "auto".
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from stepscan.analyze.speed.cases import Case, cases, leaves
from stepscan.analyze.speed.inputs import TABLE, Work
from stepscan.analyze.speed.limits import Limits
from stepscan.analyze.speed.peers import peers
from stepscan.analyze.speed.rounds import in_turns, seconds
from stepscan.analyze.speed.rows import AUTO, BOTH, FORWARD, Plan, Row, Runner, near, row

DEFINITION = "recurrent"
WRONG, LEFT_OUT = "differs", "left out"
SHORT = 128
"""Tokens of the stretch on which all is checked."""
DEFINITION_UP_TO = 2048
"""Tokens: with gradients the definition keeps every step's state."""
# A backward pass multiplies each product's gradient with both factors, and computes again what it
# does not keep: so much of each part of the work of a forward pass.
MULTIPLE = {FORWARD: (1, 1, 1), BOTH: (3, 2, 3)}


class Found(NamedTuple):
    """What the short stretch showed."""

    wrong: str
    """Why it is not timed at any length, or nothing."""
    seconds: float
    """That the short stretch takes."""


def measure(plan: Plan, limits: Limits) -> Iterator[Row]:
    """A row for each op, pass, length and form, as they are measured."""
    for op in names(plan.ops):
        for what in plan.passes:
            checked = check(plan, op, what)
            for T in plan.lengths:
                yield from _time(plan, op, what, T, checked, limits)


def names(ops: str) -> list[str]:
    """The ops that are meant, see `cases`."""
    found = [case.op for case in cases(1, heads=1, size=2, ops=ops)]
    if not found:
        raise ValueError(f"speed: no op is called {ops!r}; known: {', '.join(TABLE)}")
    return found


def is_wrong(row: Row) -> bool:
    """Whether it tells of a form of ours that is not the definition's function."""
    peers_here = {peer.name for peer in peers(row["op"])}
    return (
        bool(row["note"])
        and not row["ms"]
        and row["form"] not in peers_here
        and (not row["note"].startswith(LEFT_OUT))
    )


def case_of(plan: Plan, op: str, T: int) -> Case:
    """An op at this length."""
    sizes = {"heads": plan.heads, "size": plan.size, "batch": plan.batch}
    (case,) = cases(T, **sizes, ops=op)
    return case


def runners(case: Case, *, with_peers: bool, only: str = "") -> Iterator[Runner]:
    """What can be run for a case, first what a user gets; or only the one of this name."""
    forms = [form for form in case.forms if form != DEFINITION]
    for form in (AUTO, *forms, DEFINITION):
        if only in ("", form):
            yield Runner(form, partial(_call, case.verb, form=form), leaves(case.inputs))
    for peer in peers(case.op) if with_peers else ():
        if only in ("", peer.name):
            given = leaves(peer.prepare(case.inputs))
            yield Runner(peer.name, peer.run, given, peer.same, peer.growth, peer.multiple)


def _call(verb: Callable[..., tuple[Tensor, Any]], inputs: Any, *, form: str) -> Tensor:
    arguments, options = inputs
    return verb(*arguments, **options, form=form)[0]


def check(plan: Plan, op: str, what: str) -> dict[str, Found]:
    """What is wrong with each form and peer on a short stretch, and how long it takes."""
    case = case_of(plan, op, SHORT)
    found = {r.name: r for r in runners(case, with_peers=plan.with_peers)}
    want = _values(found[DEFINITION], what)
    checked: dict[str, Found] = {}
    for name, r in found.items():
        try:
            got = _values(r, what)
            # A peer's inputs are laid out anew, and so are its gradients: only y is compared.
            pairs = (
                zip(got, want, strict=True) if name in (AUTO, *case.forms) else [(got[0], want[0])]
            )
            wrong = WRONG if r.same and not all(near(a, b) for a, b in pairs) else ""
            checked[name] = Found(wrong, seconds(partial(r.run, what)))
        except Exception as error:  # a peer may be of a version that we do not know
            words = " ".join(str(error).split())[:60]
            checked[name] = Found(f"{type(error).__name__}: {words}", 0.0)
    return checked


def _values(r: Runner, what: str) -> list[Tensor]:
    if what == FORWARD:
        return [r.forward()]
    y, gradients = r.both()
    return [y.detach(), *gradients]


def _time(
    plan: Plan, op: str, what: str, T: int, checked: Mapping[str, Found], limits: Limits
) -> Iterator[Row]:
    case = case_of(plan, op, T)
    found = {r.name: r for r in runners(case, with_peers=plan.with_peers)}
    notes = {name: _why_not(plan, found[name], T, what, checked[name]) for name in found}
    y = found[AUTO].forward()
    for name, r in found.items():
        if r.same and not notes[name] and _quick(plan, checked[name], T):
            notes[name] = "" if near(r.forward(), y) else WRONG
    runs = {name: partial(r.run, what) for name, r in found.items() if not notes[name]}
    times = in_turns(runs, rounds=plan.rounds, budget=plan.budget)
    tokens = plan.batch * T
    binding = limits.binding(*_least(case, tokens, what, y))
    for name, r in found.items():
        yield row(
            {"op": op, "pass": what, "T": T, "form": name},
            times.get(name),
            auto=times.get(AUTO),
            tokens=tokens,
            binding=binding,
            note=notes[name] or ("" if r.same else "another function"),
        )


def _why_not(plan: Plan, r: Runner, T: int, what: str, found: Found) -> str:
    """Why it is not timed at this length, or nothing."""
    if found.wrong:
        return found.wrong
    if T % r.multiple:
        return f"{LEFT_OUT}: wants a multiple of {r.multiple} tokens"
    if r.name == DEFINITION and what == BOTH and plan.batch * T > DEFINITION_UP_TO:
        return f"{LEFT_OUT}: keeps every state"
    expected = found.seconds * (T / SHORT) ** (r.growth if what == BOTH else 1)
    return f"{LEFT_OUT}: about {expected:.0f} s" if expected > plan.patience else ""


def _quick(plan: Plan, found: Found, T: int) -> bool:
    """Whether one more run, to be compared at full length, takes less than the rounds do."""
    return found.seconds * T / SHORT < plan.budget


def _least(case: Case, tokens: int, what: str, y: Tensor) -> tuple[Work, float]:
    """The work, and the bytes of all inputs and outputs."""
    products, powers, memory = (tokens * times for times in MULTIPLE[what])
    every = [t for t in (*pytree.tree_leaves(case.inputs), y) if isinstance(t, Tensor)]
    work = Work(products * case.work.multiply_adds, powers * case.work.exponentials)
    return work, memory / tokens * sum(t.numel() * t.element_size() for t in every)
