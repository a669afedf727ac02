"""Times of whole layers beside their matrix products alone, and of whole models, beside peers.

A peer gets our weights, so that it must give our numbers; it is checked before it is timed.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.analyze.speed.ops import SHORT
from stepscan.analyze.speed.peers import transformers
from stepscan.analyze.speed.rounds import in_turns
from stepscan.analyze.speed.rows import AUTO, BOTH, FORWARD, Plan, Row, Runner, near, row
from stepscan.mixers import MIXERS
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.models.model import Block

WIDTH, DEPTH, VOCABULARY = 768, 24, 50_280
"""Of the 130M models of the Mamba paper."""
LAYERS: Mapping[str, Mapping[str, Any]] = {
    "mamba": {},
    "mamba2": {},
    "gated_delta_net": {"heads": 6},
}
MODELS = ("mamba", "gated_delta_net")
PROMPT, WINDOW = 2048, 512
"""Tokens that are read at once, and of a training step."""
PRODUCTS = "its matrix products"
LAYER_BUDGET, MODEL_BUDGET = 5.0, 40.0
"""Times the budget of an op."""


def measure(plan: Plan) -> Iterator[Row]:
    """Layers at every length, then models; decoding has a benchmark of its own."""
    for name in LAYERS:
        for what in plan.passes:
            for T in plan.lengths:
                found = list(_layer(name, T, plan))
                yield from _rows(f"layer {name}", what, T, found, plan, LAYER_BUDGET)
    for name in MODELS:
        for what, T in ((FORWARD, PROMPT), (BOTH, WINDOW)):
            found = list(_model(name, T, what, plan))
            yield from _rows(f"model {name}", what, T, found, plan, MODEL_BUDGET)


def _rows(
    op: str, what: str, T: int, found: Sequence[tuple[Runner, str]], plan: Plan, times: float
) -> Iterator[Row]:
    runs = {r.name: partial(r.run, what) for r, note in found if not note}
    timings = in_turns(runs, rounds=plan.rounds, budget=times * plan.budget)
    for r, note in found:
        note = note or ("" if r.same else "another function")  # noqa: PLW2901
        yield row(
            {"op": op, "pass": what, "T": T, "form": r.name},
            timings.get(r.name),
            auto=timings.get(AUTO),
            tokens=plan.batch * T,
            note=note,
        )


# Layers -----------------------------------------------------------------------------------------


def _layer(name: str, T: int, plan: Plan) -> Iterator[tuple[Runner, str]]:
    torch.manual_seed(0)
    ours = MIXERS[name](**LAYERS[name]).build(WIDTH)
    x = torch.randn(plan.batch, T, WIDTH)
    yield _module(AUTO, lambda module, x: module(x)[0], ours, x), ""
    yield _products(ours, x), ""
    theirs = _mixer_of_transformers(name, ours) if plan.with_peers else None
    if theirs is not None:
        short = x[:, :SHORT]
        with torch.no_grad():
            wrong = "" if near(theirs(short), ours(short)[0]) else "differs"
        yield _module("transformers", lambda module, x: module(x), theirs, x), wrong


def _module(name: str, call: Callable[..., Tensor], module: nn.Module, x: Tensor) -> Runner:
    """Gradients in the input, where it has any, and in all weights."""
    x = x.detach().clone().requires_grad_(x.is_floating_point())
    inputs = {"x": x, "weights": list(module.parameters())}
    return Runner(name, lambda given: call(module, given["x"]), inputs)


def _products(module: nn.Module, x: Tensor) -> Runner:
    """The linear maps of a module, each on what it is given there: what remains if all else is
    free.
    """
    seen: list[tuple[nn.Linear, Tensor]] = []
    linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
    hooks = [
        part.register_forward_pre_hook(lambda part, given: seen.append((part, given[0])))
        for part in linear
    ]
    with torch.no_grad():
        module(x)
    for hook in hooks:
        hook.remove()
    maps = [part for part, _ in seen]
    inputs = {
        "xs": [given.detach().clone().requires_grad_() for _, given in seen],
        "weights": [weight for part in linear for weight in part.parameters()],
    }
    call = lambda given: [part(x) for part, x in zip(maps, given["xs"], strict=True)]  # noqa: E731
    return Runner(PRODUCTS, call, inputs, same=False)


def _mixer_of_transformers(name: str, ours: nn.Module) -> nn.Module | None:
    """Their mixer with our weights, or None where there is none."""
    if name not in THEIR_NAMES or find_spec("transformers") is None:
        return None
    if name == "mamba":
        config = transformers("MambaConfig")(hidden_size=WIDTH, num_hidden_layers=1)
        theirs = transformers("models.mamba.modeling_mamba.MambaMixer")(config, 0)
    else:
        heads = len(dict(ours.named_parameters())["D"])
        config = transformers("Mamba2Config")(
            hidden_size=WIDTH,
            num_hidden_layers=1,
            num_heads=heads,
            head_dim=2 * WIDTH // heads,
            n_groups=1,
        )
        theirs = transformers("models.mamba2.modeling_mamba2.Mamba2Mixer")(config, 0)
    _give(ours, theirs, THEIR_NAMES[name])
    return theirs.eval()


THEIR_NAMES: Mapping[str, Mapping[str, str]] = {
    "mamba": {
        "inputs.weight": "in_proj.weight",
        "conv.weight": "conv1d.weight",
        "conv.bias": "conv1d.bias",
        "selection.weight": "x_proj.weight",
        "step.weight": "dt_proj.weight",
        "step_bias": "dt_proj.bias",
        "A_log": "A_log",
        "D": "D",
        "out.weight": "out_proj.weight",
    },
    "mamba2": {
        "inputs.weight": "in_proj.weight",
        "conv.weight": "conv1d.weight",
        "conv.bias": "conv1d.bias",
        "step_bias": "dt_bias",
        "A_log": "A_log",
        "D": "D",
        "norm": "norm.weight",
        "out.weight": "out_proj.weight",
    },
}


@torch.no_grad()
def _give(ours: nn.Module, theirs: nn.Module, names: Mapping[str, str]) -> None:
    source, target = dict(ours.named_parameters()), dict(theirs.named_parameters())
    for name, parameter in source.items():
        theirs_too = target[names[name]]
        theirs_too.copy_(parameter.view_as(theirs_too))


# Models -----------------------------------------------------------------------------------------


def _model(name: str, T: int, what: str, plan: Plan) -> Iterator[tuple[Runner, str]]:
    torch.manual_seed(0)
    layers = (MIXERS[name](**LAYERS[name]),) * DEPTH
    ours = SequenceModel(
        ModelConfig(
            head=NextToken(vocab=VOCABULARY),
            layers=layers,
            width=WIDTH,
            tokens=(VOCABULARY,),
            mlp_ratio=0.0,
        )
    )
    tokens = torch.randint(VOCABULARY, (plan.batch, T))
    logits = lambda model, x: model(x)[0]  # noqa: E731
    yield _module(AUTO, logits if what == FORWARD else _loss(logits), ours, tokens), ""
    if name != "mamba" or not plan.with_peers or find_spec("transformers") is None:
        return
    mambapy = what == BOTH and find_spec("mambapy") is not None  # else no gradients in any time
    theirs = _mamba_of_transformers(ours, use_mambapy=mambapy)
    short = tokens[:, :SHORT]
    with torch.no_grad():
        wrong = "" if near(theirs(short).logits, ours(short)[0]) else "differs"
    peer = "transformers mambapy" if mambapy else "transformers sequential"
    logits = lambda model, x: model(x, use_cache=False).logits  # noqa: E731
    yield _module(peer, logits if what == FORWARD else _loss(logits), theirs, tokens), wrong


def _loss(logits: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Cross entropy of the next token."""

    def run(model: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(logits(model, tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())

    return run


def _mamba_of_transformers(ours: SequenceModel, *, use_mambapy: bool) -> nn.Module:
    """Their whole model with our weights."""
    config = transformers("MambaConfig")(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        layer_norm_epsilon=torch.finfo(torch.float32).eps,  # as ours
        residual_in_fp32=True,
        use_mambapy=use_mambapy,
    )
    theirs = transformers("MambaForCausalLM")(config).eval()
    for block, layer in zip(ours.blocks, theirs.backbone.layers, strict=True):
        assert isinstance(block, Block)
        _give(block.mixer, layer.mixer, THEIR_NAMES["mamba"])
        layer.norm.weight.data.copy_(block.norm.weight.data)
    # Ours enlarges what it embeds, and not the same table where it is the map to the logits.
    table, scale = ours.embed.tables[0], ours.embed.scale
    assert isinstance(table, nn.Embedding)
    theirs.backbone.embeddings.weight.data.copy_(scale * table.weight.data)
    assert isinstance(ours.norm, torch.nn.RMSNorm)
    theirs.backbone.norm_f.weight.data.copy_(ours.norm.weight.data / scale)
    return theirs
