"""A model's step as one call: `compile_decoder`, and the decoder it returns."""

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from stepscan.generate.compiled.context import Context
from stepscan.generate.compiled.memory import Buffer, Place
from stepscan.generate.compiled.program import Program, assemble
from stepscan.generate.compiled.rules import lower
from stepscan.generate.compiled.trace import Recorder, definitions
from stepscan.generate.compiled.weights import FORMATS
from stepscan.kernels import decode as native
from stepscan.models import Inputs, SequenceModel
from stepscan.names import lookup

FIRST_SLOTS = 256  # of a cache that grows by doubling


class Spot(NamedTuple):
    """A tensor in the memory of a program."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def on(self, memory: Tensor) -> Tensor:
        """The tensor itself."""
        rest = memory[self.start :]
        rest = rest[: rest.numel() // self.dtype.itemsize * self.dtype.itemsize].view(self.dtype)
        return rest.as_strided(self.shape, self.strides, rest.storage_offset())


@dataclass(frozen=True)
class Plan:
    """A compiled model: everything that several decoders can share, and what keeps it alive."""

    program: Program
    inputs: Any
    """The inputs, with spots for tensors."""
    state: Any
    """The state likewise; None where it grows."""
    outputs: Any
    vocabularies: tuple[int, ...]
    alive: Any


class Decoder:
    """Reads one token after another for one stream, and holds its state.

    `load` takes the state of the model after any prompt, `state` gives it back.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        program = plan.program
        self._memory = torch.zeros(program.nbytes, dtype=torch.uint8)
        self._words = torch.from_numpy(program.words.copy())
        self._words[torch.from_numpy(program.where)] += self._memory.data_ptr()
        self._caches = [
            _Cache(self._words[first : first + 5], step) for first, step in program.caches
        ]
        self._inputs = _on(plan.inputs, self._memory)
        self._state = _on(plan.state, self._memory)
        self._outputs = _on(plan.outputs, self._memory)
        self._run = native.bind(self._words)

    def load(self, state: Any) -> None:
        """Go on from this state: an ordinary one, of one row."""
        flat, mine = (pytree.tree_leaves(x, is_leaf=_none) for x in (state, self._state))
        if len(flat) != len(mine):
            raise ValueError(f"load: want a state of {len(mine)} tensors, got {len(flat)}")
        for new, own in zip(flat, mine, strict=True):
            if own is not None:
                if new.shape != own.shape:
                    raise ValueError(f"load: want {tuple(own.shape)}, got {tuple(new.shape)}")
                own.copy_(new)
        growing = iter(_growing(state))
        for cache in self._caches:
            cache.load(next(growing))

    def state(self) -> Any:
        """A copy of the state, as the model would return it."""
        leaves, shape = pytree.tree_flatten(self._state, is_leaf=_none)
        grown = iter([part for cache in self._caches for part in cache.state()])
        filled = [next(grown) if leaf is None else leaf.clone() for leaf in leaves]
        return pytree.tree_unflatten(filled, shape)

    def step(self, inputs: Inputs | int) -> Any:
        """What the model says after one more token, [1, 1, ...]; a bare number is a token's."""
        if isinstance(inputs, int):
            self._check([inputs])
            self._inputs.tokens.fill_(inputs)
        else:
            for own, new in zip(self._inputs, inputs, strict=True):
                if _shape(own) != _shape(new):
                    raise ValueError("step: want inputs of one row and one step, as of the model")
                if own is not None:
                    own.copy_(new)
            if inputs.tokens is not None:
                self._check(inputs.tokens.flatten().tolist())
        for cache in self._caches:
            cache.make_room()
        self._run()
        for cache in self._caches:
            cache.append()
        if isinstance(self._outputs, Tensor):
            return self._outputs.clone()
        return pytree.tree_map_only(Tensor, torch.clone, self._outputs)

    def _check(self, tokens: list[int]) -> None:
        for token, size in zip(tokens, self._plan.vocabularies, strict=True):
            if not 0 <= token < size:
                raise IndexError(f"step: want a token from 0 to {size - 1}, got {token}")


class _Cache:
    """Keys and values of one attention layer. Full, it doubles, or forgets what left the window."""

    def __init__(self, words: Tensor, step: Any) -> None:
        self._words = words  # slots in use, keys, values, scores, capacity
        (heads, keys), (groups, values) = step.q.shape, step.v.shape
        self._sizes = heads, groups, keys, values
        self._kept = None if step.window is None else step.window - 1
        self._slots = 0
        self._reserve(FIRST_SLOTS if self._kept is None else 2 * self._kept + 1)

    def load(self, state: Any) -> None:
        keys, values, length = state
        used = min(keys.shape[1], int(length[0]))
        if self._kept is not None:
            used = min(used, self._kept)
        first = keys.shape[1] - used
        self._slots = 0
        self._reserve(max(len(self._keys), 2 * used))
        self._keys[:used], self._values[:used] = keys[0, first:], values[0, first:]
        self._slots = used
        self._words[0] = used

    def state(self) -> tuple[Tensor, Tensor]:
        first = 0 if self._kept is None else max(0, self._slots - self._kept)
        return tuple(x[None, first : self._slots].clone() for x in (self._keys, self._values))  # type: ignore[return-value]

    def make_room(self) -> None:
        if self._slots < len(self._keys):
            return
        if self._kept is None:
            self._reserve(2 * len(self._keys))
            return
        first = self._slots - self._kept
        for x in (self._keys, self._values):
            x[: self._kept] = x[first : self._slots].clone()
        self._slots = self._kept
        self._words[0] = self._slots

    def append(self) -> None:
        self._slots += 1
        self._words[0] = self._slots

    def _reserve(self, capacity: int) -> None:
        heads, groups, keys, values = self._sizes
        old = (self._keys, self._values) if self._slots else ()
        self._keys = torch.zeros(capacity, groups, keys)
        self._values = torch.zeros(capacity, groups, values)
        for new, x in zip((self._keys, self._values), old, strict=bool(old)):
            new[: self._slots] = x[: self._slots]
        self._scores = torch.zeros(heads, capacity)
        tensors = self._keys, self._values, self._scores
        words = [self._slots, *(x.data_ptr() for x in tensors), capacity]
        self._words.copy_(torch.tensor(words))


@torch.no_grad()
def compile_plan(model: SequenceModel, *, dtype: str = "fp32") -> Plan:
    """Trace and compile. Raises `ValueError` saying what stands in the way."""
    lookup(FORMATS, dtype, kind="dtype")
    _check(model)
    config = model.config
    tokens = torch.zeros(1, 1, len(config.tokens), dtype=torch.int64) if config.tokens else None
    reals = torch.zeros(1, 1, config.reals) if config.reals else None
    state = model(Inputs(tokens, reals), None)[1]  # after a token: every part has its shape
    state = pytree.tree_map_only(Tensor, lambda t: t.clone().contiguous(), state)
    given = pytree.tree_map_only(Tensor, torch.clone, Inputs(tokens, reals))
    recorder = Recorder()
    places = pytree.tree_map_only(Tensor, recorder.watch, (given, state))
    with definitions(recorder), recorder:
        outputs, after = model(given, state)
    outputs, after = pytree.tree_map_only(Tensor, recorder.place, (outputs, after))
    return _plan(lower(recorder.steps, dtype), places, outputs, after, config.tokens, recorder)


def _plan(
    context: Context,
    places: Any,
    outputs: Any,
    after: Any,
    vocabularies: tuple[int, ...],
    recorder: Recorder,
) -> Plan:
    inputs, before = places
    grown = {p.buffer for step in context.builder.finish() for p in getattr(step, "grown", ())}
    growing = {
        x.buffer for node in _growing(before) for x in (getattr(node, n) for n in node.GROWS)
    }
    if growing != grown:
        raise ValueError("compile_decoder: no rule for a state that grows, attention's aside")
    look = lambda tree: pytree.tree_map(  # noqa: E731
        lambda p: context.look(p) if isinstance(p, Place) else p, tree, is_leaf=_place
    )
    outputs, after = look(outputs), look(after)
    olds, news = (pytree.tree_leaves(x, is_leaf=_place) for x in (before, after))
    updates = [(old, new) for old, new in zip(olds, news, strict=True) if old.buffer not in grown]
    lasting = pytree.tree_leaves((inputs, outputs), is_leaf=_place)
    lasting = [p for p in lasting if isinstance(p, Place) and p.buffer.constant is None]
    program, offsets = assemble(context.builder, updates, [*lasting, *(old for old, _ in updates)])

    def spots(tree: Any) -> Any:
        return pytree.tree_map(
            lambda p: _spot(p, offsets) if isinstance(p, Place) else p, tree, is_leaf=_place
        )

    state = pytree.tree_map(
        lambda p: None if p.buffer in grown else _spot(p, offsets), before, is_leaf=_place
    )
    return Plan(program, spots(inputs), state, spots(outputs), vocabularies, recorder.alive)


def compile_decoder(model: SequenceModel, *, dtype: str = "fp32") -> Decoder:
    """A decoder of the model: one row, one token at a time, without Python between the layers.

    `dtype` is what the weights of matrix products are rounded to: fp32, bf16, or int8 with a scale
    for each row. All else stays float32. The weights are copied: what is learned later does not
    count. Raises `ValueError` where the model cannot be compiled.
    """
    decoder = Decoder(compile_plan(model, dtype=dtype))
    decoder.load(model.init_state(1))
    return decoder


def decoder_of(model: SequenceModel, *, dtype: str = "fp32") -> Decoder | None:
    """A decoder; compiled anew only if the weights have changed since the last time.

    None where the model cannot be compiled to fp32, for its ordinary step does the same; for
    another dtype that is a `ValueError`.
    """
    known, plans = _PLANS.get(model, (None, {}))
    weights = tuple((t.data_ptr(), t._version, t.dtype) for t in _weights(model)), model.training
    if known != weights:
        plans = {}
        _PLANS[model] = weights, plans
    if dtype not in plans:
        try:
            plans[dtype] = compile_plan(model, dtype=dtype)
        except ValueError:
            if dtype != "fp32":
                raise
            plans[dtype] = None
    return plans[dtype] and Decoder(plans[dtype])


_PLANS: "weakref.WeakKeyDictionary[SequenceModel, Any]" = weakref.WeakKeyDictionary()


def _weights(model: SequenceModel) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())


def _check(model: SequenceModel) -> None:
    if not native.available():
        raise ValueError("compile_decoder: no native kernels (`stepscan doctor` says why)")
    if not model.causal:
        raise ValueError("compile_decoder: this model reads both ways, so it has no single step")
    if any(m.training and isinstance(m, nn.Dropout) and m.p for m in model.modules()):
        raise ValueError("compile_decoder: call model.eval() first, dropout is on")
    for name, p in model.named_parameters():
        if p.dtype != torch.float32 or p.device.type != "cpu":
            raise ValueError(f"compile_decoder: want float32 on a CPU, {name} is {p.dtype}")


def _spot(place: Place, offsets: dict[Buffer, int]) -> Spot | Tensor:
    root = place.buffer.root()[0]
    if root.constant is not None:
        return place.value
    return Spot(offsets[root] + place.start, place.dtype, place.shape, place.strides)


def _on(tree: Any, memory: Tensor) -> Any:
    return pytree.tree_map(
        lambda x: x.on(memory) if isinstance(x, Spot) else x,
        tree,
        is_leaf=lambda x: isinstance(x, Spot) or x is None,
    )


def _growing(state: Any) -> list[Any]:
    grows = lambda node: bool(getattr(node, "GROWS", ()))  # noqa: E731
    return [x for x in pytree.tree_leaves(state, is_leaf=grows) if grows(x)]


def _place(x: object) -> bool:
    return isinstance(x, Place)


def _shape(x: Tensor | None) -> tuple[int, ...] | None:
    return None if x is None else tuple(x.shape)


def _none(x: object) -> bool:
    return x is None
