"""Whole models obey the laws of their mixers, whatever they read and say."""

from dataclasses import replace

import pytest
import torch
from laws import causal_law, live_law, reset_law, rows_law, split_law, state_law

from stepscan import state as states
from stepscan.mixers import MIXERS
from stepscan.models import (
    Classify,
    Forecast,
    Inputs,
    ModelConfig,
    NextEvent,
    NextToken,
    Regress,
    SequenceModel,
)

T = 14
HYBRID = "(gated_delta_net*3 attention)*1"
CASES = {
    "text": ModelConfig(width=16, tokens=(7,), head=NextToken(vocab=7), layers=HYBRID),
    "events": ModelConfig(
        width=16, tokens=(7, 3), reals=2, head=NextEvent(vocab=7, mixtures=2), layers="gla mamba2"
    ),
    "series": ModelConfig(
        width=16, reals=4, head=Forecast(horizon=3), layers="lstm attention[window=5]", mlp_ratio=0
    ),
    "classes": ModelConfig(
        width=16, reals=2, head=Classify(classes=4), layers="rwkv7*2 hgrn2", tie=False
    ),
    "options": ModelConfig(
        width=16, tokens=(7,), head=NextToken(vocab=7, bias=False, soft_cap=3.0), tie=False,
        layers="min_gru attention", norm="layer", norm_eps=1e-3, embedding_scale=1.0,
    ),
    "norms": ModelConfig(
        width=16,
        tokens=(7,),
        head=NextToken(vocab=7),
        layers="gla attention",
        norm="layer",
        norm_place="before after",
    ),
    "positions": ModelConfig(
        width=16, tokens=(7,), head=NextToken(vocab=7, bias=False), layers="attention gla",
        norm="layer", norm_place="post", positions=6, embedding_norm=True, initial_std=0.1,
        mlp="gelu",
    ),
    "numbers": ModelConfig(width=16, reals=2, head=Regress(outputs=3), layers="min_gru"),
}  # fmt: skip
every_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES)


def setup(config, dtype=torch.float64):
    model = SequenceModel(config).to(dtype)
    tokens = [torch.randint(size, (2, T)) for size in config.tokens]
    reals = torch.randn(2, T, config.reals, dtype=dtype) if config.reals else None
    xs = tuple(x for x in (torch.stack(tokens, -1) if tokens else None, reals) if x is not None)

    def step(xs, state, resets):
        by_kind = {"reals" if x.is_floating_point() else "tokens": x for x in xs}
        return model(Inputs(**by_kind), state, resets)

    state = states.detach(step(xs, None, None)[1])
    return step, xs, state, torch.rand(2, T) < 0.15, list(model.parameters())


@every_case
def test_split_law(config):
    step, xs, state, resets, params = setup(config)
    for cuts in ([0, 5], [3, 3, 9, T], list(range(1, T))):
        split_law(step, xs, state, cuts, resets=resets, params=params)


@every_case
def test_reset_causal_and_rows_laws(config):
    step, xs, state, resets, params = setup(config)
    reset_law(step, xs, state, resets, params=params)
    rows_law(step, xs, state, resets=resets, params=params)
    causal_law(step, xs, 9)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_state_law(config, dtype, tmp_path):
    step, xs, state, *_ = setup(config, dtype)
    state_law(step, xs, state, tmp_path / "state")


@every_case
def test_live_law(config):
    _, xs, *_ = setup(config, torch.float32)
    model = SequenceModel(config)
    by_kind = {"reals" if x.is_floating_point() else "tokens": x for x in xs}
    if "tokens" in by_kind:  # every row of a table has to be looked at
        sizes = torch.tensor(config.tokens)
        by_kind["tokens"] = torch.arange(T)[None, :, None] % sizes
        by_kind = {k: x[:1] for k, x in by_kind.items()}
    slow = any(mixer.name == "rwkv7" for mixer in config.mixers)  # its published zeros
    live_law(model, Inputs(**by_kind), steps=4 if slow else 1)


@pytest.mark.parametrize("name", MIXERS)
def test_a_model_of_any_mixer_streams(name):
    config = ModelConfig(width=16, tokens=(5,), head=NextToken(vocab=5), layers=f"{name}*2")
    model = SequenceModel(config).double()
    if not model.causal:
        pytest.skip(f"{name} reads both ways: it cannot stream")
    tokens = torch.randint(5, (2, 11))
    whole, _ = model(tokens)
    first, state = model(tokens[:, :4])
    rest, _ = model(tokens[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-10, rtol=0)


def test_tied_maps_share_one_table():
    config = ModelConfig(width=16, tokens=(7, 3), head=NextToken(vocab=7), layers="gla")
    model = SequenceModel(config)
    assert model.head.map.weight is model.embed.tables[0].weight
    untied = SequenceModel(ModelConfig.from_dict(config.to_dict() | {"tie": False}))
    assert untied.head.map.weight is not untied.embed.tables[0].weight


def test_options_mean_what_they_say():
    config, tokens = CASES["options"], torch.randint(7, (2, T))
    capped, free = (
        SequenceModel(replace(config, head=NextToken(vocab=7, bias=False, soft_cap=cap)))
        for cap in (config.head.soft_cap, None)
    )
    free.load_state_dict(capped.state_dict())
    with torch.no_grad():
        free.head.map.weight *= 9
        capped.head.map.weight *= 9
    y, wild = capped(tokens)[0], free(tokens)[0]
    assert wild.abs().max() > 3
    torch.testing.assert_close(y, 3 * (wild / 3).tanh())
    assert free.head.map.bias is None
    x = free.embed(Inputs(tokens=tokens[..., None]))
    assert torch.equal(x, free.embed.tables[0].weight[tokens])
    want = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()
    for norm in (free.norm, free.blocks[0].norm, free.blocks[1].mlp[0]):
        torch.testing.assert_close(norm(x), want)


def test_quantiles_never_cross():
    config = ModelConfig(width=16, reals=2, head=Forecast(horizon=4), layers="gla")
    y, _ = SequenceModel(config)(10 * torch.randn(2, T, 2))
    assert y.shape == (2, T, 4, 5)
    assert (y.diff(dim=-1) > 0).all()


@pytest.mark.plain
def test_inputs_that_do_not_fit_are_named():
    model = SequenceModel(CASES["events"])
    with pytest.raises(ValueError, match=r"want tokens \[B T 2\] and reals \[B T 2\]; got tokens"):
        model(torch.zeros(2, 3, dtype=torch.long))


@pytest.mark.plain
@every_case
def test_compiles_whole(config):
    model = SequenceModel(config)
    _, xs, *_ = setup(config, torch.float32)
    inputs = Inputs(**{"reals" if x.is_floating_point() else "tokens": x for x in xs})
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(inputs)[0], model(inputs)[0])


@torch.no_grad()
def test_a_block_adds_what_its_norms_leave():
    config = ModelConfig(
        width=16,
        tokens=(7,),
        head=NextToken(vocab=7),
        layers="min_gru*2",
        norm_place="before after",
    )
    model, x = SequenceModel(config).double(), 3 * torch.randn(2, T, 16).double()
    first, second = model.blocks
    for block in model.blocks:
        block.norm.weight.normal_()
    y = x + first.mixer(first.norm(x))[0]
    torch.testing.assert_close(first(x, None, None)[0], y + first.mlp[1](first.mlp[0](y)))
    y = x + second.norm(second.mixer(x)[0])
    mlp, norm = second.mlp
    assert isinstance(norm, torch.nn.RMSNorm)
    torch.testing.assert_close(second(x, None, None)[0], y + norm(mlp(y)))
