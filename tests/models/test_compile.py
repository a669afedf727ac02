"""Whole models in one graph: compiled, differentiated and exported, with native forms in them."""

import shutil

import pytest
import torch
from laws import assert_near, leaves
from torch.utils import _pytree as pytree

from stepscan.mixers import MIXERS
from stepscan.models import ModelConfig, NextToken, SequenceModel

pytestmark = pytest.mark.plain
UNROLLED = {"atlas", "miras", "test_time_regression", "titans", "ttt"}  # a graph of every chunk
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name in UNROLLED else []) for name in MIXERS
]


def build(layers):
    config = ModelConfig(width=16, tokens=(5,), head=NextToken(vocab=5), layers=layers)
    T = 6 if layers in UNROLLED else 24
    return SequenceModel(config), torch.randint(5, (2, T)), torch.rand(2, T) < 0.1


def results(run, model, tokens, resets):
    """What `run` says of two stretches, the second from the state after the first, and gradients
    of both."""
    y, state = run(tokens, None, resets)
    if model.causal:
        again, state = run(tokens, pytree.tree_map(torch.detach, state), None)
        y = torch.cat([y, again], 1)
    loss = y.square().mean() + sum(t.square().mean() for t in leaves(state) if t.requires_grad)
    sources = list(model.parameters())
    return y, state, torch.autograd.grad(loss, sources, materialize_grads=True, allow_unused=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_exported_whole(name):
    model, tokens, resets = build(name)
    program = torch.export.export(model, (tokens, None, resets))
    other = tokens.flip(1)
    assert_near(program.module()(other, None, resets), model(other, None, resets), what="exported")


def test_a_model_of_native_forms_compiles_whole_with_its_gradients():
    model, tokens, resets = build("mamba gated_delta_net")
    torch.compiler.reset()
    run = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled = results(run, model, tokens, resets)
    assert_near(compiled, results(model, model, tokens, resets), what="compiled")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", MIXERS)
def test_every_model_compiles_whole_with_its_gradients(name, backend):
    model, tokens, resets = build(name)
    torch.compiler.reset()
    run = torch.compile(model, backend=backend, fullgraph=True)
    compiled = results(run, model, tokens, resets)
    assert_near(compiled, results(model, model, tokens, resets), what="compiled")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inductor itself calls
@pytest.mark.skipif(not shutil.which("g++"), reason="install a C++ compiler")
def test_the_default_compiler_takes_native_forms():
    model, tokens, resets = build("mamba gated_delta_net")
    torch.compiler.reset()
    compiled = results(torch.compile(model, fullgraph=True), model, tokens, resets)
    assert_near(compiled, results(model, model, tokens, resets), what="compiled")
