"""Mixture of memories and memory caching: against their equations, token by token."""

import pytest
import torch
from laws import assert_near, causal_law, live_law, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.mixers.gated_delta_net import GatedDeltaNetConfig
from stepscan.mixers.memory_caching import MemoryCachingConfig
from stepscan.mixers.mixture_of_memories import MixtureOfMemoriesConfig

WIDTH, T = 16, 20
OPTIONS = {
    "mom_alone": MixtureOfMemoriesConfig(shared=False, top_k=1, memories=3, window=2),
    "mom_all": MixtureOfMemoriesConfig(memories=2, top_k=2, heads=2),
    "segment_1": MemoryCachingConfig(segment=1),
    "restart": MemoryCachingConfig(segment=5, restart=True, read="residual"),
    "mean": MemoryCachingConfig(segment=4, read="mean", window=1),
    "soup": MemoryCachingConfig(segment=3, read="soup", heads=2),
    "sparse": MemoryCachingConfig(segment=2, read="sparse"),
    "sparse_1": MemoryCachingConfig(segment=7, read="sparse", top_k=1, restart=True),
}


@pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)
def test_laws_hold_for_every_option(config):
    mixer, x = config.build(WIDTH).double(), torch.randn(3, T, WIDTH).double()
    early = torch.zeros(3, T, dtype=torch.bool)
    early[0, 15] = True  # so the rows stand at different places of their segments
    before = torch.randn_like(x)  # the same inputs twice would have equal copies to choose from
    state, resets = states.detach(mixer(before, None, early)[1]), torch.rand(3, T) < 0.15
    step, params = lambda xs, state, resets: mixer(xs[0], state, resets), list(mixer.parameters())
    if config == OPTIONS["mom_alone"]:  # one memory a token: its weight is one, whatever the logits
        params = [p for p in params if p is not mixer.router.weight]
    else:
        live_law(config.build(WIDTH), x.float())
    split_law(step, (x,), state, [0, 3, 4, 11], resets=resets, params=params)
    split_law(step, (x,), state, list(range(1, T)), params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    causal_law(step, (x,), 9)


def as_base(mixer):
    """A gated_delta_net with the weights of a mixture's only memory."""
    base = GatedDeltaNetConfig().build(WIDTH).double()
    weights = mixer.state_dict()
    k_v = weights.pop("key_value")[0].T
    weights["inputs.qkv.weight"] = torch.cat([weights.pop("query.weight"), k_v])
    weights["inputs.conv.weight"] = weights.pop("conv.weight")
    weights["inputs.strength.weight"] = weights.pop("strength.weight")
    weights.pop("router.weight")
    base.load_state_dict(weights)
    return base


def test_one_memory_is_the_base_mixer():
    config = MixtureOfMemoriesConfig(memories=1, top_k=1, shared=False)
    mixer, x = config.build(WIDTH).double(), torch.randn(2, T, WIDTH).double()
    resets = torch.rand(2, T) < 0.15
    y, state = mixer(x, None, resets)
    want, base_state = as_base(mixer)(x, None, resets)
    assert_near(y, want, what="y")
    assert_near(state.memory[:, 0], base_state.memory, what="memory")


def test_each_memory_sees_its_own_tokens_as_if_there_were_no_others():
    """Every token through every memory in a loop that skips those it is not sent to."""
    config = MixtureOfMemoriesConfig(memories=3, top_k=2, heads=2)
    mixer, x = config.build(WIDTH).double(), torch.randn(2, T, WIDTH).double()
    y, state = mixer(x)
    weight = torch.cat([mixer.route(x), torch.ones(2, T, 1)], -1)
    assert_near(weight[..., :3].sum(-1), torch.ones(2, T).double(), what="weights")
    beta = torch.sigmoid(mixer.strength(x)).unflatten(-1, (4, 2))
    alpha = mixer.decay(x).exp().unflatten(-1, (4, 2))
    unit = lambda z: z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    for b in range(2):
        S, past = torch.zeros(4, 2, 6, 12).double(), torch.zeros(4, 3, 48).double()
        for t in range(T):
            read = 0
            for m in range(4):
                if weight[b, t, m] == 0:
                    continue
                qkv = torch.cat([mixer.query(x[b, t]), x[b, t] @ mixer.key_value[m]])
                seen = torch.cat([past[m], qkv[None]])
                past[m] = seen[1:]
                qkv = F.silu((seen.T * mixer.conv.weight).sum(1))
                q, k, v = (z.view(2, -1) for z in qkv.split(mixer.sizes))
                q, k = unit(q) / 6**0.5, unit(k)
                S[m] = S[m] * alpha[b, t, m, :, None, None]
                error = v - torch.einsum("hkv,hk->hv", S[m], k)
                S[m] = S[m] + torch.einsum("hk,hv->hkv", beta[b, t, m, :, None] * k, error)
                read = read + weight[b, t, m] * torch.einsum("hkv,hk->hv", S[m], q)
            want = mixer.norm(read).flatten() * F.silu(mixer.gate(x[b, t]))
            assert_near(y[b, t], mixer.out(want), what=f"y[{b}, {t}]")
        assert_near(state.memory[b], S, what="memory")
        assert_near(state.window[b], past, what="window")


def test_balance_loss_is_one_where_all_are_used_alike_and_the_count_where_one_is():
    mixer = MixtureOfMemoriesConfig(memories=4, top_k=1).build(WIDTH)
    x = F.one_hot(torch.arange(8) % 4, WIDTH).float()[None]
    with torch.no_grad():
        mixer.router.weight.copy_(100 * torch.eye(4, WIDTH))
    assert_near(mixer.balance_loss(x), torch.tensor(1.0), what="balanced")
    assert_near(mixer.balance_loss(x[:, ::4]), torch.tensor(4.0), what="one memory")


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("read", ["residual", "mean", "gated", "soup", "sparse"])
def test_reads_its_copies_as_published(read, restart):
    C = 3
    config = MemoryCachingConfig(segment=C, read=read, restart=restart, top_k=2)
    mixer, x = config.build(WIDTH).double(), torch.randn(1, T, WIDTH).double()
    y, state = mixer(x)
    inputs, _ = mixer.inputs(x)
    q, k, v, beta = (z[0] for z in inputs)
    alpha = mixer.decay(x)[0].exp()
    S, copies, means = torch.zeros(4, 3, 6).double(), [], []
    for t in range(T):
        if restart and t % C == 0:
            S = torch.zeros_like(S)
        S = S * alpha[t, :, None, None]
        error = v[t] - torch.einsum("hkv,hk->hv", S, k[t])
        S = S + torch.einsum("hk,hv->hkv", beta[t, :, None] * k[t], error)
        memories = [*copies, S]
        g = torch.ones(len(memories)).double()
        if read == "mean":
            g = g / len(g)
        elif read != "residual":
            running = x[0, t - t % C : t + 1].mean(0)
            scores = torch.stack([*means, running]) @ mixer.asks(x[0, t])
            if read == "sparse":
                best = scores[:-1].topk(min(2, len(copies))).indices.tolist()
                left = [i for i in range(len(copies)) if i not in best]
                scores[left] = -torch.inf
            g = scores.softmax(0)
            assert read != "sparse" or (g > 0).sum() == min(2, len(copies)) + 1
        S_read = sum(w * M for w, M in zip(g, memories, strict=True))
        want = mixer.norm(torch.einsum("hkv,hk->hv", S_read, q[t])).flatten()
        assert_near(y[0, t], mixer.out(want * F.silu(mixer.gate(x[0, t]))), what=f"y[{t}]")
        if (t + 1) % C == 0:
            copies.append(S)
            means.append(x[0, t + 1 - C : t + 1].mean(0))
    assert_near(state.copies[0], torch.stack(copies), what="copies")
    assert_near(state.means[0], torch.stack(means), what="means")


def test_no_segments_is_the_base_mixer_and_copies_come_with_its_weights():
    mixer = MemoryCachingConfig(segment=None, read="residual").build(WIDTH).double()
    base, x = GatedDeltaNetConfig().build(WIDTH).double(), torch.randn(2, T, WIDTH).double()
    mixer.load_state_dict(base.state_dict())
    assert_near(mixer(x)[0], base(x)[0], what="y")
    for read in ("residual", "mean"):
        cached = MemoryCachingConfig(segment=6, read=read).build(WIDTH).double()
        cached.load_state_dict(base.state_dict())
        assert_near(cached(x)[0][:, :6], base(x)[0][:, :6], what="first segment")


@pytest.mark.parametrize("segment", [1, 3, 7, 20, 21])
def test_there_is_one_copy_for_every_full_segment(segment):
    mixer, x = MemoryCachingConfig(segment=segment).build(WIDTH), torch.randn(2, T, WIDTH)
    assert mixer(x)[1].copies.shape[1] == T // segment
    state = None
    for t in range(T):  # also where a row is reset, no slots are added to what is needed
        state = mixer(x[:, t : t + 1], state, torch.tensor([[t == 9], [False]]))[1]
    assert state.copies.shape[1] == T // segment
    full = state.copies.flatten(2).any(-1).sum(1)
    assert full.tolist() == [(T - 9) // segment, T // segment]


@pytest.mark.plain
def test_errors_say_what_to_fix():
    for config, match in (
        (MixtureOfMemoriesConfig(heads=5), "heads=5 must divide keys=12 and values=24"),
        (MixtureOfMemoriesConfig(top_k=5), "want 1 <= top_k <= memories, got top_k=5"),
        (MemoryCachingConfig(read="gate"), "Did you mean 'gated'"),
        (MemoryCachingConfig(segment=0), "want segment at least 1, got 0"),
        (MemoryCachingConfig(top_k=0), "want top_k at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=match):
            config.build(WIDTH)
