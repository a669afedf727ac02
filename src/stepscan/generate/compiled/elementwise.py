"""Rules for what happens to each number on its own."""

import math
from collections.abc import Callable
from typing import Any

from stepscan.generate.compiled.builder import Values
from stepscan.generate.compiled.context import Context, Rule
from stepscan.generate.compiled.memory import Place
from stepscan.generate.compiled.moves import clone

Operand = Place | float
Function = Callable[..., int]

NAMESAKES = (
    "add sub mul div neg exp expm1 log log1p sigmoid tanh silu sqrt rsqrt abs maximum minimum sin "
    "cos"
).split()


def named(name: str) -> Function:
    """One operation of the kernel."""
    return lambda f, *x: f(name, *x)


def _clamped(f: Values, x: int, low: float | None, high: float | None) -> int:
    x = x if low is None else f("maximum", x, float(low))
    return x if high is None else f("minimum", x, float(high))


def _gelu_erf(f: Values, x: int) -> int:
    return f("mul", f("mul", x, 0.5), f("add", f("erf", f("mul", x, 0.5**0.5)), 1.0))


def _gelu_tanh(f: Values, x: int) -> int:
    cube = f("mul", x, f("mul", x, x))
    bent = f("mul", f("multiply_add", x, cube, 0.044715), (2 / math.pi) ** 0.5)
    return f("mul", f("mul", x, 0.5), f("add", f("tanh", bent), 1.0))


def _logaddexp(f: Values, a: int, b: int) -> int:
    far = f("abs", f("sub", a, b))
    return f("add", f("maximum", a, b), f("log1p", f("exp", f("neg", far))))


FUNCTIONS: dict[str, Function] = {name: named(name) for name in NAMESAKES} | {
    "erf": named("erf"),
    "exp2": lambda f, x: f("exp", f("mul", x, math.log(2))),
    "reciprocal": lambda f, x: f("div", 1.0, x),
    "rsub": lambda f, x, y: f("sub", y, x),
    "relu": lambda f, x: f("maximum", x, 0.0),
    "log_sigmoid_forward": lambda f, x: f("neg", f("softplus", f("neg", x))),
    "logaddexp": _logaddexp,
    "lt": named("less"),
    "le": named("less_equal"),
    "gt": lambda f, x, y: f("less", y, x),
    "ge": lambda f, x, y: f("less_equal", y, x),
    "eq": named("equal"),
    "ne": lambda f, x, y: f("not", f("equal", x, y)),
    "bitwise_not": named("not"),
    "logical_not": named("not"),
    "bitwise_and": named("and"),
    "logical_and": named("and"),
    "bitwise_or": named("or"),
    "logical_or": named("or"),
    "where": named("where"),
}
"""Operations whose operands are only broadcast."""

COMPLEX: dict[str, Callable[..., tuple[int, int]]] = {
    "add": lambda f, a, b, c, d: (f("add", a, c), f("add", b, d)),
    "sub": lambda f, a, b, c, d: (f("sub", a, c), f("sub", b, d)),
    "mul": lambda f, a, b, c, d: (
        f("sub", f("mul", a, c), f("mul", b, d)),
        f("add", f("mul", a, d), f("mul", b, c)),
    ),
}


def elementwise(c: Context, name: str, outs: list[Place], args: tuple[Any, ...]) -> None:
    """The rule of all `FUNCTIONS`: operands are broadcast, or single numbers."""
    out, operands = outs[0], [x if isinstance(x, Place) else float(x) for x in args]
    if out.dtype.is_complex:
        _complex_numbers(c, name, out, operands)
        return
    same = [x.expand(out.shape) if isinstance(x, Place) else x for x in operands]
    c.builder.loop(out, same, FUNCTIONS[name])


def _complex_numbers(c: Context, name: str, out: Place, operands: list[Operand]) -> None:
    if name not in COMPLEX:
        raise ValueError(f"compile_decoder: no rule for {name} of complex numbers")
    parts: list[Operand] = []
    for x in operands:
        wide = x.expand(out.shape) if isinstance(x, Place) else x
        complexes = isinstance(wide, Place) and wide.dtype.is_complex
        parts += wide.halves() if complexes else (wide, 0.0)  # type: ignore[union-attr]
    c.builder.loop(out.halves(), parts, COMPLEX[name])


def _complex_of(c: Context, outs: list[Place], real: Place, imaginary: Place) -> None:
    parts = [x.expand(outs[0].shape) for x in (real, imaginary)]
    c.builder.loop(outs[0].halves(), parts, lambda _, x, y: (x, y))


def _power(c: Context, outs: list[Place], x: Place, power: float) -> None:
    functions: dict[float, Function] = {
        2.0: lambda f, x: f("mul", x, x),
        3.0: lambda f, x: f("mul", x, f("mul", x, x)),
        0.5: named("sqrt"),
        -0.5: named("rsqrt"),
        -1.0: FUNCTIONS["reciprocal"],
    }
    if power not in functions:
        raise ValueError(f"compile_decoder: no rule for the power {power}")
    c.builder.loop(outs[0], [x], functions[power])


def _multiply_add(c: Context, outs: list[Place], *args: Place, value: float = 1) -> None:
    places = [x.expand(outs[0].shape) for x in args]
    scaled = lambda f, x: x if value == 1 else f("mul", x, float(value))  # noqa: E731
    function = lambda f, x, y, z: f("multiply_add", x, scaled(f, y), z)  # noqa: E731
    c.builder.loop(outs[0], places, function)


def _clamp(
    c: Context, outs: list[Place], x: Place, low: float | None = None, high: float | None = None
) -> None:
    c.builder.loop(outs[0], [x], lambda f, x: _clamped(f, x, low, high))


def _gelu(c: Context, outs: list[Place], x: Place, *, approximate: str = "none") -> None:
    c.builder.loop(outs[0], [x], _gelu_erf if approximate == "none" else _gelu_tanh)


def _clamp_min(c: Context, outs: list[Place], x: Place, low: float) -> None:
    _clamp(c, outs, x, low)


def _elu(
    c: Context,
    outs: list[Place],
    x: Place,
    alpha: float = 1,
    scale: float = 1,
    input_scale: float = 1,
) -> None:
    def elu(f: Values, x: int) -> int:
        low = f("mul", f("expm1", f("mul", x, float(input_scale))), float(alpha))
        return f("mul", f("where", f("less", 0.0, x), x, low), float(scale))

    c.builder.loop(outs[0], [x], elu)


def _softplus(
    c: Context, outs: list[Place], x: Place, beta: float = 1, threshold: float = 20
) -> None:
    if beta != 1:
        raise ValueError("compile_decoder: no rule for softplus with another beta than 1")
    c.builder.loop(outs[0], [x], named("softplus"))


def _masked_fill(c: Context, outs: list[Place], x: Place, mask: Place, value: float) -> None:
    if mask.buffer.constant is not None and not mask.value.any():
        clone(c, outs, x)
        return
    if outs[0].dtype.is_complex:
        raise ValueError("compile_decoder: no rule for a mask on complex numbers")
    places = [place.expand(outs[0].shape) for place in (mask, x)]
    c.builder.loop(
        outs[0], [places[0], float(value), places[1]], lambda f, m, v, x: f("where", m, v, x)
    )


def _glu(c: Context, outs: list[Place], x: Place, dim: int = -1) -> None:
    dim %= len(x.shape)
    half = x.shape[dim] // 2
    parts = x.part(dim, 0, half), x.part(dim, half, half)
    c.builder.loop(outs[0], parts, lambda f, a, b: f("mul", a, f("sigmoid", b)))


RULES: dict[str, Rule] = {
    "complex": _complex_of,
    "pow": _power,
    "addcmul": _multiply_add,
    "clamp": _clamp,
    "clamp_min": _clamp_min,
    "gelu": _gelu,
    "elu": _elu,
    "softplus": _softplus,
    "masked_fill": _masked_fill,
    "glu": _glu,
}
