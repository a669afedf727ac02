"""Rules for the ops that have a memory, each a step of its own kernel."""

from typing import Any

from stepscan.generate.compiled.context import Context, Rule
from stepscan.generate.compiled.elementwise import named
from stepscan.generate.compiled.instructions import Along, AttentionStep, MemoryStep
from stepscan.generate.compiled.memory import Place, constant, fresh


def _linear_attention(
    c: Context,
    outs: list[Place],
    q: Place,
    k: Place,
    v: Place,
    *,
    log_decay: Place,
    state: Place,
    resets: Place | None,
) -> None:
    _never(resets)
    q, k, v, g = (x.at(0, 0) for x in (q, k, v, log_decay))
    none, each = Along(None), len(v.shape) and v.shape[0] // q.shape[0]
    vectors = _decay(c, g), none, Along(k, each), none, Along(q, each)
    y, after = outs
    _memory(c, MemoryStep.ADD, state.at(0), after.at(0), vectors, v, y.at(0, 0))


def _delta_rule(
    c: Context,
    outs: list[Place],
    q: Place,
    k: Place,
    v: Place,
    *,
    beta: Place,
    log_decay: Place,
    erase: Place | None = None,
    state: Place,
    resets: Place | None,
) -> None:
    _never(resets)
    erase = k if erase is None else erase
    before, after = state.at(0), outs[1].at(0)
    decay, none = _decay(c, log_decay.at(0, 0)), Along(None)
    writes = k.shape[2]
    for j in range(writes):
        k_j, v_j, e_j = (x.at(0, 0, j) for x in (k, v, erase))
        strength = beta.at(0, 0, j)
        strength = strength._replace(shape=(*strength.shape, 1), strides=(*strength.strides, 0))
        w = fresh(k_j.shape)
        c.builder.loop(w, [strength.expand(k_j.shape), k_j], named("mul"))
        vectors = (
            decay if j == 0 else none,
            Along(_decayed(c, e_j, decay if j == 0 else none)),
            Along(w),
            none,
            Along(q.at(0, 0)) if j == writes - 1 else none,
        )
        y = outs[0].at(0, 0) if j == writes - 1 else None
        _memory(c, MemoryStep.CORRECT, before, after, vectors, v_j, y)
        before = after


def _dplr(
    c: Context,
    outs: list[Place],
    q: Place,
    k: Place,
    v: Place,
    *,
    a: Place,
    b: Place,
    log_decay: Place,
    undecayed: bool,
    state: Place,
    resets: Place | None,
) -> None:
    _never(resets)
    q, k, v, a, b = (x.at(0, 0) for x in (q, k, v, a, b))
    decay = _decay(c, log_decay.at(0, 0))
    erase = a if undecayed else _decayed(c, a, decay)
    vectors = decay, Along(erase), Along(b), Along(k), Along(q)
    y, after = outs
    _memory(c, MemoryStep.TRANSFER, state.at(0), after.at(0), vectors, v, y.at(0, 0))


def _memory(
    c: Context,
    write: int,
    before: Place,
    after: Place,
    vectors: tuple[Along, Along, Along, Along, Along],
    v: Place,
    y: Place | None,
) -> None:
    if v.strides[1] != 1 and v.shape[1] > 1:
        v = c.builder.dense(v)
    heads, keys, values = before.shape
    before = c.builder.dense(before)
    step = MemoryStep((heads, keys, values), write, before, after, vectors, v, y)
    c.builder.emit(step)


def _decay(c: Context, g: Place) -> Along:
    """exp(g), [H, K] or [H, 1] for all K."""
    if g.buffer.constant is not None:
        decay = g.value.exp().contiguous()
        return Along(None) if (decay == 1).all() else Along(constant(decay))
    out = fresh(g.shape)
    c.builder.loop(out, [g], named("exp"))
    return Along(out)


def _decayed(c: Context, x: Place, decay: Along) -> Place:
    if decay.place is None:
        return x
    out = fresh(x.shape)
    c.builder.loop(out, [x, decay.place.expand(x.shape)], named("mul"))
    return out


def _attention(
    c: Context,
    outs: list[Place],
    q: Place,
    k: Place,
    v: Place,
    *,
    window: int | None,
    bias: Place | None,
    sink: Place | None,
    state: Any,
    resets: Place | None,
) -> None:
    _never(resets)
    q, k, v = (c.builder.dense(x.at(0, 0)) for x in (q, k, v))
    keys, values, length = state
    y = outs[0].at(0, 0)
    step = AttentionStep(q, k, v, y, bias, sink, window, (keys, values))
    c.builder.emit(step)
    c.builder.loop(outs[3], [length], lambda f, n: f("add", n, 1.0))


def _never(resets: Place | None) -> None:
    if resets is not None and (resets.buffer.constant is None or resets.value.any()):
        raise ValueError("compile_decoder: a step resets its memory")


RULES: dict[str, Rule] = {
    "linear_attention": _linear_attention,
    "delta_rule": _delta_rule,
    "dplr": _dplr,
    "attention": _attention,
}
