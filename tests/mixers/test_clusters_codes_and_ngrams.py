"""Routing attention, LongVQ and n-gram heads: what each token meets, in plain loops."""

import pytest
import torch
from laws import assert_near, causal_law, live_law, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.mixers.longvq import LongVQConfig
from stepscan.mixers.ngram_head import NgramHeadConfig
from stepscan.mixers.routing_attention import RoutingAttentionConfig
from stepscan.ops.quantize import nearest

WIDTH, T = 16, 20
OPTIONS = {
    "one_cluster": RoutingAttentionConfig(clusters=1, heads=2),
    "clusters": RoutingAttentionConfig(clusters=7),
    "codes": LongVQConfig(codes=3, heads=2, states=2),
    "orders": NgramHeadConfig(orders=(3, 1), features=4),
}


@pytest.mark.parametrize("config", OPTIONS.values(), ids=OPTIONS)
def test_laws_hold_for_every_option(config):
    mixer, x = config.build(WIDTH).double(), torch.randn(3, T, WIDTH).double()
    early = torch.zeros(3, T, dtype=torch.bool)
    early[0, 15] = True
    state, resets = states.detach(mixer(x, None, early)[1]), torch.rand(3, T) < 0.15
    step, params = lambda xs, state, resets: mixer(xs[0], state, resets), list(mixer.parameters())
    split_law(step, (x,), state, [0, 3, 4, 11], resets=resets, params=params)
    split_law(step, (x,), state, list(range(1, T)), params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    causal_law(step, (x,), 9)
    live_law(config.build(WIDTH), x.float())


@pytest.mark.parametrize("clusters", [1, 5])
def test_routing_is_attention_within_the_cluster_of_the_token(clusters):
    mixer = RoutingAttentionConfig(clusters=clusters).build(WIDTH).double()
    x, resets = torch.randn(2, T, WIDTH).double(), torch.rand(2, T) < 0.1
    y, _ = mixer(x, None, resets)
    segment = resets.cumsum(1)
    for b in range(2):
        k, v = mixer.key_value(x[b]).unflatten(1, (2, 4, 4)).unbind(1)
        k = (k - k.mean(-1, keepdim=True)) / (k.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        k = k / 2
        cluster = torch.einsum("thk,hck->thc", k, mixer.centroids).argmax(-1)
        for t in range(T):
            heads = []
            for h in range(4):
                met = [j for j in range(t + 1) if cluster[j, h] == cluster[t, h]]
                met = [j for j in met if segment[b, j] == segment[b, t]]
                weights = (2 * k[met, h] @ k[t, h]).softmax(0)
                heads.append(weights @ v[met, h])
            assert_near(y[b, t], mixer.out(torch.cat(heads)), what=f"y[{b}, {t}]")


def test_centroids_learn_to_cluster():
    mixer = RoutingAttentionConfig(clusters=3, heads=1, centroid_decay=0.5).build(WIDTH)
    kinds = torch.randn(3, WIDTH)
    x = (kinds[torch.arange(60) % 3] + 0.05 * torch.randn(60, WIDTH))[None]
    keys, _ = mixer._keys_values(kinds[None])
    with torch.no_grad():  # each begins next to another kind, so that none is left without tokens
        mixer.centroids.copy_(F.normalize(keys[0].transpose(0, 1) + 0.3, dim=-1))
    for _ in range(20):
        mixer.learn_centroids(x)
    found = nearest(mixer._keys_values(x)[0], mixer.centroids)[0, :, 0]
    assert (found.view(20, 3) == found[:3]).all()
    assert len(set(found[:3].tolist())) == 3
    assert_near(mixer.centroids.norm(dim=-1), torch.ones(1, 3), what="length")


def written_out(mixer, x, codes=None):
    """Softmax attention of LongVQ to its keys, or to the codes nearest to them."""
    u = F.silu(mixer.average(x, mixer.init_state(len(x)).average)[0])
    q, k = mixer._queries_keys(u)
    if codes is not None:
        k = torch.stack([codes[h][nearest(k, codes)[:, :, h]] for h in range(len(codes))], 2)
    v = F.silu(mixer.value(x)).unflatten(-1, (len(mixer.codes), -1))
    scores = mixer.log_temperature.exp()[:, None, None] * torch.einsum("bthk,bjhk->bhtj", q, k)
    hidden = ~torch.ones(x.shape[1], x.shape[1]).tril().bool()
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    a = torch.einsum("bhtj,bjhv->bthv", weights, v).flatten(2)
    return F.silu(mixer.out(u) + mixer.attended(a * F.silu(mixer.gate(u))))


def test_sums_per_code_are_attention_to_quantised_keys():
    mixer, x = LongVQConfig(codes=7).build(WIDTH).double(), torch.randn(2, 40, WIDTH).double()
    difference = mixer(x)[0] - written_out(mixer, x, mixer.codes)
    assert difference.abs().max() < 1e-8  # the sums are divided by their count + 1e-10


def test_more_codes_come_closer_to_attention_and_are_used():
    x = torch.randn(8, 64, WIDTH).double()
    errors = []
    for codes in (2, 8, 32, 128):
        torch.manual_seed(1)
        mixer = LongVQConfig(codes=codes, heads=1, code_decay=0.5).build(WIDTH).double()
        for _ in range(10):
            mixer.learn_codes(x)
        errors.append((mixer(x)[0] - written_out(mixer, x)).square().mean().item())
        u = F.silu(mixer.average(x, mixer.init_state(8).average)[0])
        used = nearest(mixer._queries_keys(u)[1], mixer.codes).unique()
        assert len(used) > codes / 2
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4


def counted(tokens, n, values, t):
    """The mean of what came after the last n tokens where they came before; zero if nowhere."""
    if t < n - 1:
        return torch.zeros_like(values[0])
    gram = tokens[t - n + 1 : t + 1]
    after = [j for j in range(n, t + 1) if tokens[j - n : j] == gram]
    return values[after].mean(0) if after else torch.zeros_like(values[0])


@pytest.mark.parametrize("orders", [(1,), (2,), (1, 2, 3)])
def test_a_sharp_head_counts(orders):
    """One-hot inputs, each its own view: then equal views are equal tokens."""
    config = NgramHeadConfig(orders=orders, features=WIDTH, sharpness=100.0)
    mixer = config.build(WIDTH).double()
    tokens = torch.randint(3, (60,)).tolist()
    x = F.one_hot(torch.tensor(tokens), WIDTH).double()
    with torch.no_grad():
        mixer.view.weight.copy_(torch.eye(WIDTH).repeat(len(orders), 1))
    y, _ = mixer(x[None])
    values = mixer.value(x).unflatten(1, (len(orders), WIDTH))
    for t in range(60):
        heads = [counted(tokens, n, values[:, i], t) for i, n in enumerate(orders)]
        want = mixer.own(x[t]) + mixer.out(torch.cat(heads))
        torch.testing.assert_close(y[0, t], want, atol=1e-4, rtol=0)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    for config, match in (
        (RoutingAttentionConfig(heads=3), "heads=3 must divide width=16"),
        (RoutingAttentionConfig(clusters=0), "want clusters at least 1, got 0"),
        (RoutingAttentionConfig(centroid_decay=1.0), "want 0 <= centroid_decay < 1, got 1.0"),
        (LongVQConfig(heads=3), "heads=3 must divide width=16"),
        (LongVQConfig(codes=1), "want codes at least 2, got 1"),
        (LongVQConfig(code_decay=-1.0), "want 0 <= code_decay < 1, got -1.0"),
        (NgramHeadConfig(orders=()), "want orders of at least 1"),
        (NgramHeadConfig(features=0), "want features at least 1"),
    ):
        with pytest.raises(ValueError, match=match):
            config.build(WIDTH)
