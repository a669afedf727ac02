"""Projections in bfloat16, and nothing else."""

import pytest
import torch
from native import needs
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from stepscan.generate.decode import decode
from stepscan.generate.sampling import Sampling
from stepscan.layers.projection import Linear
from stepscan.models import ModelConfig, NextToken, SequenceModel
from stepscan.ops.projection import ENOUGH_WORK, bfloat16_projections, project

FEW, MANY = 3, 40


def build(layers="min_gru"):
    return SequenceModel(ModelConfig(width=16, tokens=(7,), head=NextToken(vocab=7), layers=layers))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(MANY,), (2, MANY)], ids=str)
def test_products_are_of_rounded_numbers_and_float32_comes_out(bias, shape):
    linear, x = Linear(5, 6, bias=bias), torch.randn(*shape, 5, requires_grad=True)
    with bfloat16_projections():
        y = linear(x)
    rounded = [t.detach().bfloat16().double() for t in (x, linear.weight)]
    want = F.linear(*rounded) + (linear.bias.double() if bias else 0)
    assert y.dtype == torch.float32
    error = (y - want).abs().max() / want.abs().max()
    assert 0 < error < 2**-8
    assert not y.equal(linear(x))
    grads = torch.autograd.grad(y.square().sum(), (x, *linear.parameters()))
    exact = torch.autograd.grad(linear(x).square().sum(), (x, *linear.parameters()))
    for got, want in zip(grads, exact, strict=True):
        assert got.dtype == torch.float32
        assert (got - want).norm() < 0.02 * want.norm()


def test_few_rows_other_dtypes_and_other_products_stay_as_they_are():
    linear, x = Linear(5, 6), torch.randn(FEW, 5)
    many = torch.randn(MANY, 5)
    with bfloat16_projections():
        alone, wide = linear(x), project(many.double(), linear.weight.double())
        product = many @ many.T
        summed = torch.einsum("ij,kj->ik", many, many)
    assert alone.equal(linear(x))
    assert wide.dtype == torch.float64
    assert product.equal(many @ many.T)
    assert summed.equal(torch.einsum("ij,kj->ik", many, many))
    with bfloat16_projections(enabled=False):
        assert linear(many).equal(linear(many))
    assert linear(many).equal(F.linear(many, linear.weight, linear.bias))


def test_a_model_reads_a_prompt_with_it_and_its_state_stays_wide():
    model, tokens = build("mamba"), torch.randint(7, (1, MANY))
    want, _ = model(tokens)
    with torch.no_grad(), bfloat16_projections():
        got, state = model(tokens)
        drawn = decode(model, tokens, sampling=Sampling(), rng=torch.Generator())
        assert [next(drawn).shape for _ in range(3)] == [(1,)] * 3
    assert not got.equal(want)
    assert (got - want).norm() < 0.02 * want.norm()
    assert all(t.dtype == torch.float32 for t in pytree.tree_leaves(state))


@pytest.mark.plain
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_it_compiles_and_a_compiled_model_sees_it_come_and_go(backend):
    model, tokens = build(), torch.randint(7, (1, MANY))
    torch.compiler.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    plain, _ = compiled(tokens)
    with bfloat16_projections():
        got, _ = compiled(tokens)
        want, _ = model(tokens)
    torch.testing.assert_close(got, want)
    assert not got.equal(plain)
    assert compiled(tokens)[0].equal(plain)


@needs("linear_scan")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("shape", "inputs", "outputs"),
    [((300,), 70, 65), ((2, 5), 512, 257), ((4,), 512, 512)],
    ids=str,
)
def test_large_products_agree_with_float64_in_value_and_both_derivatives(
    bias, shape, inputs, outputs
):
    linear, x = Linear(inputs, outputs, bias=bias), torch.randn(*shape, inputs)
    assert x[..., 0].numel() * linear.weight.numel() >= ENOUGH_WORK

    def run(product, dtype):
        leaves = [t.detach().to(dtype).requires_grad_() for t in (x, *linear.parameters())]
        y = product(*leaves)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), leaves[:2])
        return y, *first, *second

    for got, want in zip(run(project, torch.float32), run(F.linear, torch.float64), strict=True):
        assert got.shape == want.shape
        assert (got - want).norm() <= 1e-5 * want.norm()


@pytest.mark.plain
@needs("linear_scan")
def test_large_products_are_one_operator():
    args = [torch.randn(*size, requires_grad=True) for size in ((20, 5), (6, 5), (6,))]
    torch.library.opcheck(torch.ops.stepscan.linear.default, args)
    compiled = torch.compile(project, backend="eager", fullgraph=True)
    x, weight = torch.randn(64, 128), torch.randn(256, 128)
    assert compiled(x, weight).equal(project(x, weight))


def test_autocast_is_left_to_torch():
    x, weight = torch.randn(64, 128), torch.randn(256, 128)
    with torch.autocast("cpu", torch.bfloat16):
        assert project(x, weight).dtype == torch.bfloat16
