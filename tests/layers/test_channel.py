"""Channel mixers beyond the dense ones: structured maps and experts."""

import pytest
import torch
from laws import assert_near, live_law
from torch import nn
from torch.nn import functional as F

from stepscan.layers.channel import CHANNEL_MIXERS, ChannelConfig
from stepscan.layers.costs import collect, total
from stepscan.layers.experts import Experts
from stepscan.layers.structured import BlockDense, BlockShuffle, LowRank, pre_merge

N, M, RANK, BLOCKS = 24, 40, 8, 4
MAPS = {
    "low_rank": (LowRank, RANK * (M + N)),
    "block_dense": (BlockDense, RANK * M + RANK * N // BLOCKS),
    "block_shuffle": (BlockShuffle, min(M, N) * (M + N) // BLOCKS),
}
every_map = pytest.mark.parametrize(("kind", "count"), MAPS.values(), ids=MAPS)
every_mixer = pytest.mark.parametrize("name", CHANNEL_MIXERS)


class Alone(nn.Module):
    """A channel mixer with the outputs of a mixer, for the law."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x), ()


@every_mixer
def test_every_parameter_is_live_and_every_token_alone(name):
    layer = ChannelConfig(name, {}).build(16, 2.0).double()
    x = torch.randn(3, 11, 16).double()
    live_law(Alone(layer), x)
    assert_near(layer(x)[1, 4], layer(x[1, 4]), what="a token alone")
    assert layer(x[:, :0]).shape == (3, 0, 16)


@every_mixer
def test_bfloat16_stays_bfloat16(name):
    layer = ChannelConfig(name, {}).build(16, 2.0).bfloat16()
    assert layer(torch.randn(2, 3, 16).bfloat16()).dtype == torch.bfloat16


@every_map
def test_a_structured_map_is_its_matrix(kind, count):
    layer, x = kind(N, M, RANK, BLOCKS).double(), torch.randn(2, 5, N).double()
    matrix, y = layer.to_dense(), layer(x)
    assert matrix.shape == (M, N)
    torch.testing.assert_close(x @ matrix.mT, y, atol=1e-12, rtol=0)
    want = {LowRank: RANK, BlockDense: RANK, BlockShuffle: min(M, N)}[kind]
    assert torch.linalg.matrix_rank(matrix) == want
    layer.pre_merge()
    assert_near(layer(x), y, what="merged")
    assert set(layer.state_dict()) == {"first", "second"}


@every_map
def test_parameters_and_flops_are_those_of_the_formula(kind, count):
    layer = kind(N, M, RANK, BLOCKS)
    assert sum(p.numel() for p in layer.parameters()) == layer.parameter_count == count
    assert layer.flops == 2 * count


def test_block_factors_act_on_their_own_inputs_only():
    """The first factor of one block sees its quarter of the inputs; the shuffle deals it round."""
    dense, x = BlockDense(N, M, RANK, BLOCKS).double(), torch.zeros(N).double()
    x[: N // BLOCKS] = torch.randn(N // BLOCKS).double()
    want = dense.second[:, : RANK // BLOCKS] @ dense.first[0] @ x[: N // BLOCKS]
    assert_near(dense(x), want, what="block dense")
    shuffle = BlockShuffle(N, M, RANK, BLOCKS).double()
    reached = shuffle(x).unflatten(0, (M // BLOCKS, BLOCKS)).abs().amax(0)
    assert (reached > 1e-6).all(), "a block of outputs hears nothing of the first block of inputs"


def test_orthonormal_blocks_keep_lengths():
    layer = BlockShuffle(N, N, RANK, BLOCKS).double()
    x = torch.randn(7, N).double()
    torch.testing.assert_close(layer(x).norm(dim=-1), x.norm(dim=-1))


def test_a_whole_model_is_merged():
    layer = nn.Sequential(ChannelConfig("block_dense", {}).build(16, 4.0), nn.GELU()).double()
    x = torch.randn(3, 16).double()
    y = layer(x)
    pre_merge(layer)
    assert_near(layer(x), y, what="merged")


def by_hand(layer, x):
    """One token, expert by expert."""
    p = (layer.router.weight @ x).softmax(-1)
    weights, chosen = p.topk(layer.top)
    if layer.normalize:
        weights = weights / weights.sum()
    y = torch.zeros_like(x)
    for w, i in zip(weights, chosen, strict=True):
        y = y + w * layer.out[i] @ (F.silu(layer.gate[i] @ x) * (layer.value[i] @ x))
    if layer.shared is not None:
        y = y + torch.sigmoid(layer.shared_gate(x)) * layer.shared(x)
    return y


@pytest.mark.parametrize("shared", [0.0, 1.0, 0.5])
@pytest.mark.parametrize(("top", "normalize"), [(1, False), (2, True), (4, True)])
def test_experts_equal_their_equation(top, normalize, shared):
    layer = Experts(8, experts=4, top=top, normalize=normalize, shared=shared).double()
    x = torch.randn(9, 8).double()
    y = layer(x)
    for token, got in zip(x, y, strict=True):
        assert_near(got, by_hand(layer, token), what="y")
    weights, chosen = layer.router(x).softmax(-1).topk(top)
    if normalize:
        weights = weights / weights.sum(-1, keepdim=True)
    if not shared:
        assert_near(layer._all(x, weights, chosen), y, what="all experts at once")


def test_balance_is_least_where_experts_are_used_alike():
    """1 in balance, E where all fall on one; and descending it spreads the tokens."""
    layer, x = Experts(8, experts=4, top=1, balance=1.0), torch.randn(400, 8)
    with torch.no_grad():
        x[:, 0] = 1.0
        layer.router.weight.zero_()
        layer.router.weight[2, 0] = 20.0
    with collect() as costs:
        layer(x)
    assert total(costs).item() == pytest.approx(4.0, abs=1e-3)
    nn.init.normal_(layer.router.weight, std=0.1)
    with torch.no_grad():
        layer.router.weight[2, 0] += 1.0
    before = layer.router(x).argmax(-1).bincount(minlength=4).max()
    optimizer = torch.optim.Adam(layer.parameters(), 0.01)
    for _ in range(200):
        with collect() as costs:
            layer(x)
        optimizer.zero_grad()
        total(costs).backward()
        optimizer.step()
    after = layer.router(x).argmax(-1).bincount(minlength=4).max()
    assert total(costs).item() < 1.05
    assert after < 150
    assert before > 250


def test_costs_reach_whoever_collects_and_nobody_else():
    layer, x = Experts(8), torch.randn(5, 8)
    with collect() as outer:
        layer(x)
        with collect() as inner:
            layer(x)
        layer(x)
    layer(x)
    assert (len(outer), len(inner)) == (2, 1)
    assert total([]) == 0.0
