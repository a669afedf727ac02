import argparse
import ast
import datetime
import difflib
import gc
import inspect
import math
import typing
import weakref
from itertools import islice

import pytest
import torch
from native import every_level, every_thread, needs
from torch import nn
from torch.utils import _pytree as pytree

from stepscan.generate import Sampling, compile_decoder, decode
from stepscan.generate.compiled import decoder_of
from stepscan.generate.compiled.weights import FORMATS, pack
from stepscan.mixers import MIXERS, from_dict
from stepscan.models import (
    Classify,
    Forecast,
    Inputs,
    ModelConfig,
    NextEvent,
    NextToken,
    SequenceModel,
)
from stepscan.models.pattern import parse

pytestmark = needs("decode_step")

COMPILED = (
    "attention causal_conv delta_net gated_delta_net gla gru hgrn2 linear_attention lru lstm mamba "
    "mamba2 min_gru mlstm retnet rwkv7 s4d slstm"
).split()
OPTIONS = (  # where the step differs from that of the defaults
    {"name": "attention", "key_value_heads": 2, "qk_norm": True},
    {"name": "attention", "window": 5},
    {"name": "attention", "rotary": False, "heads": 3},
    {"name": "delta_net", "n_householder": 3, "step_size": "kaczmarz"},
    {"name": "gated_delta_net", "n_householder": 2, "eig_range": (-1.0, 1.0)},
    {"name": "lstm", "depth": 2, "expansion": 0.5},
    {"name": "gru", "depth": 2, "expansion": 1.5},
    {"name": "mamba", "states": 5, "window": 1},
    {"name": "mamba2", "groups": 2, "heads": 4, "states": 7},
    {"name": "mlstm", "heads": 2, "block": 8},
    {"name": "slstm", "window": 0},
)
TOLERANCE = 1e-5  # of the largest number


def build(layers, *, width=48, vocab=50, head=None, **options) -> SequenceModel:
    if isinstance(layers, dict):
        layers = (from_dict(layers),)
    head = head or NextToken(vocab=vocab)
    options = {"tokens": (vocab,), **options}
    model = SequenceModel(ModelConfig(head=head, layers=layers, width=width, **options)).eval()
    with torch.no_grad():  # initial values hide what is multiplied by zero or one
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return model


def near(got, want, tolerance=TOLERANCE) -> None:
    got, want = pytree.tree_leaves(got), pytree.tree_leaves(want)
    assert [x.shape for x in got] == [x.shape for x in want]
    for a, b in zip(got, want, strict=True):
        if a.numel():
            error, size = ((x).abs().max().item() for x in ((a - b).double(), b.double()))
            assert error <= tolerance * max(size, 1e-3), f"{tuple(a.shape)}: {error} of {size}"


@torch.no_grad()
def agrees(model, *, read=9, steps=12, dtype="fp32", decoder=None) -> None:
    """Outputs of every step, and the state after them, are those of the model."""
    tokens = torch.randint(model.config.tokens[0], (1, read + steps))
    _, state = model(tokens[:, :read])
    decoder = decoder or compile_decoder(model, dtype=dtype)
    decoder.load(state)
    for i in range(read, read + steps):
        want, state = model(tokens[:, i : i + 1], state)
        near(decoder.step(int(tokens[0, i])), want)
    near(decoder.state(), state)


@pytest.mark.parametrize("name", COMPILED)
@every_thread
def test_every_mixer_decodes_as_it_reads(name, threads):
    agrees(build(name))


@pytest.mark.parametrize("name", sorted(set(MIXERS) - set(COMPILED)))
def test_what_cannot_be_compiled_says_why(name):
    model = build(name)
    if decoder_of(model) is not None:
        agrees(model)
        return
    with pytest.raises(ValueError, match="compile_decoder: "):
        compile_decoder(model)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: " ".join(map(str, o.values())))
def test_options_of_mixers(options):
    agrees(build(options))


@every_level
@every_thread
def test_every_level_and_thread_count(level, threads):
    agrees(build("gated_delta_net mamba mlstm attention s4d hgrn2", width=32))


def test_sizes_that_fill_no_vector():
    for width, layers in ((1, "min_gru"), (7, "lru"), (13, "lstm"), (10, "causal_conv s4d gru")):
        agrees(build(layers, width=width, vocab=3))


def test_a_cache_grows_and_a_window_slides():
    model = build((*parse("attention"), from_dict({"name": "attention", "window": 7})))
    agrees(model, read=1, steps=600)
    agrees(model, read=300, steps=20)


def test_a_decoder_starts_again_from_any_state():
    model = build("attention gla")
    decoder = compile_decoder(model)
    for read in (30, 1, 8):
        agrees(model, read=read, decoder=decoder)
    with torch.no_grad():
        fresh, _ = model(torch.tensor([[4]]))
    near(compile_decoder(model).step(4), fresh)


def test_the_same_steps_give_the_same_bits(poisoned):
    model = build("gated_delta_net mamba")

    def run():
        decoder = compile_decoder(model)
        return [decoder.step(i % 50) for i in range(20)]

    assert all(map(torch.equal, run(), run()))


def test_other_inputs_and_heads():
    x = torch.randn(1, 6, 3)
    heads = (Forecast(horizon=4), Classify(classes=5))
    for head in heads:
        model = build("mamba", head=head, tokens=(), reals=3)
        decoder, state = compile_decoder(model), None
        for t in range(6):
            with torch.no_grad():
                want, state = model(Inputs(reals=x[:, t : t + 1]), state)
            near(decoder.step(Inputs(reals=x[:, t : t + 1])), want)
    model = build("gru", head=NextEvent(vocab=50), tokens=(50, 4), reals=2)
    inputs = Inputs(tokens=torch.tensor([[[7, 3]]]), reals=torch.randn(1, 1, 2))
    with torch.no_grad():
        near(compile_decoder(model).step(inputs), model(inputs)[0])


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_only_weights_are_rounded(dtype):
    """As if the model had those weights in float32."""
    model = build("gated_delta_net attention", tie=False)
    rounded = build("gated_delta_net attention", tie=False)
    rounded.load_state_dict(model.state_dict())
    with torch.no_grad():
        for module in rounded.modules():
            if isinstance(module, nn.Linear):
                w = module.weight
                scale = w.abs().amax(1, keepdim=True) / 127
                int8 = (w / scale).round() * scale
                w.copy_(w.bfloat16().float() if dtype == "bf16" else int8)
    decoder, state = compile_decoder(model, dtype=dtype), None
    for token in (3, 1, 4):
        with torch.no_grad():
            want, state = rounded(torch.tensor([[token]]), state)
        near(decoder.step(token), want, 1e-4)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(1, 1), (16, 4), (17, 5), (40, 33)])
def test_packing_keeps_every_weight(dtype, shape):
    weight = torch.randn(shape).bfloat16().float()
    packed = pack(weight, dtype)
    each = (1, 2, 4)[FORMATS[dtype]]
    rows = packed.data.transpose(1, 2).flatten(2).flatten(0, 1)[: shape[0], : shape[1]].float()
    rows = rows if packed.scales is None else rows * packed.scales[: shape[0], None]
    torch.testing.assert_close(rows, weight, atol=weight.abs().max().item() / 250, rtol=0)
    assert packed.data.shape[2:] == (16, each)


def test_decoding_uses_it_and_draws_the_same():
    model = build("gla attention")
    prompt = torch.randint(50, (1, 5))

    def draw(count, **options):
        rng = torch.Generator().manual_seed(0)
        steps = decode(model, prompt, sampling=Sampling(), rng=rng, **options)
        return [int(token) for token in islice(steps, count)]

    drawn = draw(60)
    rng = torch.Generator().manual_seed(0)
    tokens = prompt
    for token in drawn:  # the whole sequence again, by the model alone
        with torch.no_grad():
            logits, _ = model(tokens)
        assert int(Sampling().choose(logits[:, -1], rng)) == token
        tokens = torch.cat([tokens, torch.tensor([[token]])], 1)
    assert decoder_of(model) is not None
    assert draw(60) == drawn
    assert draw(10) == drawn[:10]
    assert len(draw(20, dtype="int8")) == 20


def test_new_weights_are_seen():
    model = build("gla")
    before = decoder_of(model).step(1)
    assert torch.equal(decoder_of(model).step(1), before)
    with torch.no_grad():
        model.norm.weight.mul_(2)
    near(decoder_of(model).step(1), model(torch.tensor([[1]]))[0].detach())


def test_a_model_is_let_go():
    model = build("gla")
    assert decoder_of(model) is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


@pytest.mark.plain
def test_errors_say_what_to_fix(monkeypatch):
    model = build("gla")
    with pytest.raises(ValueError, match="unknown dtype 'fp16'"):
        compile_decoder(model, dtype="fp16")
    decoder = compile_decoder(model)
    with pytest.raises(IndexError, match="want a token from 0 to 49"):
        decoder.step(50)
    with pytest.raises(ValueError, match="load: want"):
        decoder.load(model.init_state(2))
    with pytest.raises(ValueError, match="step: want inputs"):
        decoder.step(Inputs(tokens=torch.zeros(1, 2, 1, dtype=torch.int64)))
    with pytest.raises(ValueError, match="want float32 on a CPU"):
        compile_decoder(build("gla").double())
    with pytest.raises(ValueError, match=r"call model.eval\(\) first"):
        compile_decoder(build("gla", dropout=0.1).train())
    rng = torch.Generator()
    two = decode(
        model, torch.zeros(2, 3, dtype=torch.int64), sampling=Sampling(), rng=rng, dtype="int8"
    )
    with pytest.raises(ValueError, match="want one row"):
        next(two)
    monkeypatch.setenv("STEPSCAN_KERNELS", "off")
    with pytest.raises(ValueError, match="no native kernels"):
        compile_decoder(model)
    one = decode(model, torch.zeros(1, 3, dtype=torch.int64), sampling=Sampling(), rng=rng)
    assert len(list(islice(one, 20))) == 20  # by the model itself


def test_an_unknown_operation_is_named():
    model = build("gla")
    model.norm = nn.Sequential(model.norm, Sorted())
    with pytest.raises(ValueError, match=r"no rule for aten\.sort"):
        compile_decoder(model)


class Sorted(nn.Module):
    def forward(self, x):
        return x.sort(-1).values


@pytest.mark.slow
def test_rounded_weights_cost_little():
    """Bits per byte of unseen text, read token by token by a model that has learned some."""
    modules = argparse, ast, datetime, inspect, typing, difflib
    *read, kept = (list(inspect.getsource(m).encode()) for m in modules)
    text = torch.tensor([byte for part in read for byte in part])
    model = SequenceModel(
        ModelConfig(head=NextToken(vocab=256), tokens=(256,), layers="gated_delta_net mamba")
    )
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(200):
        rows = torch.stack([text[i : i + 65] for i in torch.randint(len(text) - 65, (8,))])
        logits, _ = model(rows[:, :-1])
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    model.eval()
    bytes_ = kept[:5000]
    with torch.no_grad():
        logits, _ = model(torch.tensor([bytes_[:-1]]))
    bits = {"ordinary": _bits(logits[0], bytes_[1:])}
    for dtype in FORMATS:
        decoder = compile_decoder(model, dtype=dtype)
        bits[dtype] = _bits(torch.cat([decoder.step(b)[0] for b in bytes_[:-1]]), bytes_[1:])
    assert bits["ordinary"] < 4, bits
    assert bits["fp32"] == pytest.approx(bits["ordinary"], rel=1e-5), bits
    assert bits["bf16"] == pytest.approx(bits["fp32"], rel=1e-3), bits
    assert bits["int8"] == pytest.approx(bits["fp32"], rel=1e-2), bits


def _bits(logits: torch.Tensor, targets: list[int]) -> float:
    return float(nn.functional.cross_entropy(logits, torch.tensor(targets))) / math.log(2)
