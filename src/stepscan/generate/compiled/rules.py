"""How each operation of a trace becomes instructions. What has no rule cannot be compiled."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch.utils import _pytree as pytree

from stepscan.generate.compiled import elementwise, memories, moves, products, rows
from stepscan.generate.compiled.context import Context, Rule
from stepscan.generate.compiled.memory import Place
from stepscan.generate.compiled.trace import Step

RULES: Mapping[str, Rule] = MappingProxyType(
    {f"stepscan.{name}": rule for name, rule in memories.RULES.items()}
    | {
        f"aten.{name}": rule
        for room in (elementwise, moves, products, rows)
        for name, rule in room.RULES.items()
    }
)


def lower(steps: list[Step], dtype: str) -> Context:
    """The instructions of a trace; `ValueError` names the first operation without a rule."""
    context = Context(steps, dtype)
    for context.at, step in enumerate(steps):
        if context.at not in context.done:
            _lower(context, step)
    return context


def _lower(context: Context, step: Step) -> None:
    name = ".".join(step.name.split(".")[:2])  # without the overload
    seen = lambda place: context.look(place) if isinstance(place, Place) else place  # noqa: E731
    is_place = lambda x: isinstance(x, Place)  # noqa: E731
    args, options = pytree.tree_map(seen, (step.args, step.options), is_leaf=is_place)
    verb = name.removeprefix("aten.")
    try:
        if name in RULES:
            RULES[name](context, step.outs, *args, **options)
        elif verb in elementwise.FUNCTIONS and _defaults(options):
            elementwise.elementwise(context, verb, step.outs, args)
        else:
            raise TypeError(f"options {options}" if options else "an operation unheard of")
    except TypeError as error:  # an argument that the rule does not know
        raise ValueError(f"compile_decoder: no rule for {step.name}: {error}") from error


def _defaults(options: dict[str, Any]) -> bool:
    return all(value in (1, None) for value in options.values())
