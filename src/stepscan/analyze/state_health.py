"""Does a state stay sound beyond the length that it was trained at? Measured, with a verdict.

    norms      of every state tensor, channel by channel, over time
    kept       what is left of a channel after d more tokens: |J^T u| / |u| for random u, with J the
               Jacobian of the state after d tokens; for a memory that only decays, the product of
               its decays. The horizon is where it falls below 1/e
    losses     by position, within the trained length and beyond it

A state that is too large for its training length never learns to forget; past that length it fills
up, and a few channels grow far beyond the others: state collapse (Chen et al. 2024,
arXiv:2410.07145). The published evidence is the loss by position and the variance of channels; the
thresholds here are our own. The cost is two passes over the inputs, one with gradients.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from stepscan import state as states
from stepscan.layers.bounded_memory import MemoryBounds
from stepscan.models import SequenceModel

VERDICTS = {
    "explodes": "the state grows faster than the number of tokens, or is not finite",
    "collapses": "the loss rises beyond the trained length",
    "never forgets": "the state holds all it ever read and grows; longer inputs will fill it",
    "healthy": "norms and losses stay what they were at the trained length",
}
RISE = 0.05  # of the loss, that counts as collapse
FILLED = 0.1  # share of a tensor's channels that keep more than half and grow
GROWN = (
    1.5  # times its norm within the trained length, that a channel must reach to count as filling
)
OUTLIER = 3.0  # times its norm within the trained length, and times the growth of the median


class Part(NamedTuple):
    """One tensor of the state; its channels are its first and last axis after the batch."""

    name: str
    size: int
    """Numbers in a row."""
    norms: Tensor
    """[times, channels], root mean squares over rows and the axes between."""
    growth: Tensor
    """[channels]: the norm after the last token, in times of the largest within the trained length,
    its own or the mean of all."""
    outliers: tuple[int, ...]
    """Channels that grew three times, and three times as much as the median."""
    kept: Tensor
    """[distances, channels]."""
    horizon: float
    """Tokens until the median channel keeps less than 1/e; infinite beyond the last distance."""

    @property
    def filling(self) -> float:
        """Share of channels that hold on to what they read, and grow."""
        return ((self.kept[-1] > 0.5) & (self.growth > GROWN)).double().mean().item()


class Health(NamedTuple):
    """What `collapse_report` found."""

    verdict: str
    """One of VERDICTS."""
    words: str
    """The same in sentences, with the numbers."""
    lengths: tuple[int, ...]
    """The trained length first."""
    losses: tuple[float, ...] | None
    """Mean loss in the second half of the trained length, then between each length and the next."""
    times: tuple[int, ...]
    distances: tuple[int, ...]
    parts: tuple[Part, ...]
    """The tensors of the state that are real numbers and keep their size."""


def collapse_report(
    model: nn.Module,
    inputs: Tensor,
    lengths: Sequence[int],
    *,
    targets: Tensor | None = None,
    rows: int = 8,
    seed: int = 0,
) -> Health:
    """Read `inputs` beyond the trained length, and judge the state and the loss on the way.

    Args:
        model: A causal mixer or model: `model(inputs, state) -> (outputs, state)`.
        inputs: [B T] ids or [B T C] reals, with T at least the last of `lengths`.
        lengths: The trained length, then longer ones, ascending.
        targets: [B T]: ids, -1 where nothing is asked, or [B T O] reals, NaN where nothing is
            asked. None: the next ids of `inputs`; no loss where those are real numbers.
        rows: Rows whose states are kept; losses are those of all.
        seed: Of the random vectors.
    """
    _check(model, inputs, lengths)
    trained, last = lengths[0], lengths[-1]
    if targets is None and not inputs.is_floating_point():
        targets = F.pad(inputs[:, 1:], (0, 1), value=-1)
    times = _times(lengths)
    was_training = model.training
    model.eval()
    costs: list[Tensor] = []
    walked: list[dict[str, Tensor]] = []
    middle = None
    for begin, end, outputs, state in _walk(model, inputs, None, (0, *times)):
        if targets is not None:
            costs.append(_cost(outputs, targets[:, begin:end]))
        some = states.select(state, torch.arange(min(rows, len(inputs)), device=inputs.device))
        walked.append({name: _norms(value) for name, value in _tensors(some).items()})
        middle = some if end == trained else middle
    distances = tuple(d for d in (1 << i for i in range(31)) if d < last - trained)
    distances = (*distances, last - trained)
    kept = _kept(model, inputs[:rows, trained:last], middle, distances, seed)
    model.train(was_training)
    sizes = {name: value[0].numel() for name, value in _tensors(middle).items()}
    parts = tuple(
        _part(
            name,
            sizes[name],
            torch.stack([norms[name] for norms in walked]),
            torch.tensor([t <= trained for t in times]),
            kept[name],
            distances,
        )
        for name in kept
        if all(norms.get(name, torch.zeros(0)).shape == kept[name][0].shape for norms in walked)
    )
    spans, rises = _spans(torch.cat(costs, 1), lengths) if costs else (None, False)
    verdict, words = _judge(parts, spans, rises, lengths)
    return Health(verdict, words, tuple(lengths), spans, times, distances, parts)


def mitigated(model: SequenceModel, **options: float | int | None) -> SequenceModel:
    """A model with the same weights whose memories are bounded: see `layers/bounded_memory.py`.

    `mitigated(model, memory_window=64)`, or `forget_scale=2.0`, or `state_norm=10.0`: in every
    layer that has these options.
    """
    layers = tuple(
        dataclasses.replace(c, **options) if isinstance(c, MemoryBounds) else c
        for c in model.config.mixers
    )
    if not any(isinstance(c, MemoryBounds) for c in layers):
        raise ValueError(
            "mitigated: want a layer whose memory may be bounded (gla, mamba2), got "
            + " ".join(c.name for c in layers)
        )
    bounded = SequenceModel(dataclasses.replace(model.config, layers=layers))
    like = next(model.parameters())
    bounded.to(like.device, like.dtype).load_state_dict(model.state_dict())
    return bounded.train(model.training)


def _check(model: nn.Module, inputs: Tensor, lengths: Sequence[int]) -> None:
    if not getattr(model, "causal", True):
        raise ValueError("collapse_report: want a causal model; one that reads both ways has none")
    if len(lengths) < 2 or lengths[0] < 2 or any(a >= b for a, b in pairwise(lengths)):
        raise ValueError(
            f"collapse_report: want the trained length and longer ones, ascending, got {lengths}"
        )
    if inputs.ndim < 2 or inputs.shape[1] < lengths[-1]:
        raise ValueError(
            f"collapse_report: want inputs [B T ...] of {lengths[-1]} steps, got "
            f"{tuple(inputs.shape)}; pass longer ones, or shorter lengths"
        )


def _times(lengths: Sequence[int]) -> tuple[int, ...]:
    """Two an octave, and all lengths: when norms are taken."""
    trained, last = lengths[0], lengths[-1]
    steps = range(-2 * trained.bit_length(), 2 * (last // trained).bit_length() + 1)
    times = {round(trained * 2 ** (i / 2)) for i in steps}
    return tuple(sorted({t for t in times if 1 <= t <= last} | set(lengths)))


def _walk(
    model: nn.Module, inputs: Tensor, state: object, cuts: Sequence[int]
) -> Iterator[tuple[int, int, Tensor, object]]:
    for begin, end in pairwise(cuts):
        with torch.set_grad_enabled(state is not None and _live(state)):
            outputs, state = model(inputs[:, begin:end], state)
        yield begin, end, outputs, state


def _live(state: object) -> bool:
    return any(t.requires_grad for t in _tensors(state).values())


def _tensors(state: object) -> dict[str, Tensor]:
    """Real and complex tensors of a state by name."""
    named, _ = pytree.tree_flatten_with_path(state)
    kinds = lambda t: isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex())  # noqa: E731
    return {pytree.keystr(path): t for path, t in named if kinds(t) and t.numel()}


def _norms(value: Tensor) -> Tensor:
    """[channels]: root mean square of each."""
    square = value.detach().abs().double().square()
    first = square.shape[1] if square.ndim > 2 else 1
    last = square.shape[-1] if square.ndim > 1 else 1
    return square.reshape(len(square), first, -1, last).mean((0, 2)).sqrt().flatten()


def _kept(
    model: nn.Module, inputs: Tensor, state: object, distances: Sequence[int], seed: int
) -> dict[str, Tensor]:
    """By tensor, [distances, channels]."""
    rng = torch.Generator(inputs.device).manual_seed(seed)
    state = states.detach(state)
    before = {name: t.requires_grad_() for name, t in _tensors(state).items()}
    found: dict[str, list[Tensor]] = {name: [] for name in before}
    for _, _, _, later in _walk(model, inputs, state, (0, *distances)):
        for name, value in _tensors(later).items():
            if name not in before or value.shape != before[name].shape:
                found.pop(name, None)  # it grows with the sequence: nothing is lost from it
                continue
            probe = torch.randn(value.shape, generator=rng, device=value.device)
            probe = probe.to(value.dtype)
            grad = torch.zeros_like(value)
            if value.requires_grad:
                (pulled,) = torch.autograd.grad(
                    value, before[name], probe, retain_graph=True, allow_unused=True
                )
                grad = grad if pulled is None else pulled
            found[name].append(_norms(grad) / _norms(probe))
    return {name: torch.stack(ratios) for name, ratios in found.items() if ratios}


def _part(
    name: str, size: int, norms: Tensor, within: Tensor, kept: Tensor, distances: Sequence[int]
) -> Part:
    usual = norms[within].max(0).values
    usual = usual.clamp_min(usual.square().mean().sqrt().item())  # empty channels do not explode
    growth = torch.where(usual > 0, norms[-1] / usual, 1.0)
    limit = OUTLIER * growth.nanmedian().clamp_min(1.0)
    outliers = tuple((~(growth <= limit)).nonzero().flatten().tolist())  # NaN is one as well
    horizon = _horizon(kept.median(1).values, distances)
    return Part(name, size, norms, growth, outliers, kept, horizon)


def _horizon(kept: Tensor, distances: Sequence[int]) -> float:
    """Where it falls below 1/e, between two distances as an exponential does."""
    d0, r0 = 0.0, 1.0
    for d1, r1 in zip(distances, kept.tolist(), strict=True):
        if r1 < 1 / math.e:
            part = (math.log(r0) + 1) / (math.log(r0) - math.log(max(r1, 1e-300)))
            return d0 + (d1 - d0) * part
        d0, r0 = float(d1), r1
    return math.inf


def _cost(outputs: Tensor, targets: Tensor) -> Tensor:
    """[B T], NaN where nothing is asked."""
    if targets.is_floating_point():
        return _finite((outputs - targets).square().mean(-1), ~targets.isnan().any(-1))
    if outputs.ndim != 3 or outputs.shape[:2] != targets.shape:
        raise ValueError(
            f"collapse_report: want logits [B T V] for targets {tuple(targets.shape)}, got "
            f"{tuple(outputs.shape)}; pass real targets for real outputs"
        )
    cost = F.cross_entropy(outputs.transpose(1, 2).float(), targets.clamp_min(0), reduction="none")
    return _finite(cost, targets >= 0)


def _finite(cost: Tensor, asked: Tensor) -> Tensor:
    """A loss that is not a number is as bad as any."""
    return cost.nan_to_num(torch.inf, torch.inf).masked_fill(~asked, torch.nan)


def _spans(cost: Tensor, lengths: Sequence[int]) -> tuple[tuple[float, ...], bool]:
    """Mean losses, and whether one rose, by more than the spread over rows explains."""
    cuts = lengths[0] // 2, *lengths
    by_row = torch.stack([cost[:, a:b].double().nanmean(1) for a, b in pairwise(cuts)])
    means = by_row.nanmean(1)
    if means[0].isnan():
        raise ValueError(
            f"collapse_report: want targets in the second half of the trained length {lengths[0]}, "
            "got none there"
        )
    rise = by_row[1:] - by_row[0]
    noise = rise.std(1) / math.sqrt(rise.shape[1]) if rise.shape[1] > 1 else torch.zeros(())
    rises = (means[1:] > (1 + RISE) * means[0]) & ~(means[1:] - means[0] <= 2 * noise)
    return tuple(means.tolist()), bool(rises.any())


def _memories(parts: Sequence[Part]) -> list[Part]:
    """Of every layer the tensors half as large as its largest; counters and scales may grow."""
    layers: dict[str, list[Part]] = {}
    for part in parts:
        layers.setdefault(part.name.partition(".")[0], []).append(part)
    return [
        p for layer in layers.values() for p in layer if 2 * p.size >= max(q.size for q in layer)
    ]


def _judge(
    parts: Sequence[Part], losses: Sequence[float] | None, rises: bool, lengths: Sequence[int]
) -> tuple[str, str]:
    trained, last = lengths[0], lengths[-1]
    large = _memories(parts)
    exploding = {p.name for p in parts if not bool(p.norms.isfinite().all())}
    exploding |= {p.name for p in large if bool((p.growth > 2 * last / trained).any())}
    filling = {p.name for p in large if p.filling >= FILLED} - exploding
    said = []
    if losses is not None:
        worst = max(range(1, len(losses)), key=lambda i: (losses[i] == losses[i], losses[i]))
        change = losses[worst] / losses[0] - 1 if losses[0] else math.inf
        said.append(
            f"Loss {losses[0]:.3g} around the trained length {trained}, {losses[worst]:.3g} from "
            f"token {lengths[worst - 1] + 1} to {lengths[worst]}: {change:+.0%}."
        )
    for p in parts:
        grown = f"{p.growth.max().item():.3g} times"
        if p.name in exploding:
            said.append(f"{p.name} grows {grown}, the input {last / trained:.3g} times.")
        elif p.name in filling:
            said.append(
                f"{p.name} fills up: {p.filling:.0%} of its channels keep more than half of what "
                f"they held for {last - trained} tokens, and it grows up to {grown}."
            )
        elif p.outliers:
            said.append(f"{len(p.outliers)} of {len(p.growth)} channels of {p.name} grow {grown}.")
    if parts and not exploding | filling:
        reach = max(p.horizon for p in large)
        fades = f"fades within about {reach:.3g}" if reach < math.inf else f"lasts {last - trained}"
        said.append(f"The state keeps its size; what is read {fades} tokens.")
    verdict = "explodes" if exploding else "never forgets" if filling else "healthy"
    if rises and not exploding:
        verdict = "collapses"
    if filling or rises:
        said.append(
            "Train on longer sequences, or bound the memory (options of gla and mamba2: "
            "forget_scale, state_norm, memory_window)."
        )
    return verdict, " ".join([f"{verdict.capitalize()}: {VERDICTS[verdict]}.", *said])
