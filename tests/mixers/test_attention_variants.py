"""Cheaper attention: exact where it leaves nothing out, and measured where it estimates."""

import math

import pytest
import torch
from laws import assert_near, reset_law, split_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.mixers import MIXERS
from stepscan.mixers.lsh_attention import all_pairs, by_bucket
from stepscan.mixers.performer import orthogonal_directions, positive_features

WIDTH, T = 16, 24


def built(name, **options):
    return MIXERS[name](**options).build(WIDTH).double(), torch.randn(2, T, WIDTH).double()


def full(q, k, v, *, causal):
    """Softmax attention of [B T H K], by torch."""
    q, k, v = (z.transpose(1, 2) for z in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2)


def heads(x, count, parts):
    return x.unflatten(-1, (parts, count, -1)).unbind(-3)


def estimate(q, k, directions):
    (fq, sq), (fk, sk) = positive_features(q, directions), positive_features(k, directions)
    return (fq * fk).sum(-1) * (sq + sk).exp()


@pytest.mark.parametrize("orthogonal", [True, False])
def test_random_features_estimate_the_exponential_without_bias(orthogonal):
    """The mean over many draws is within four standard errors of exp(q . k)."""
    q, k = (torch.randn(6, 8).double() * 0.5 for _ in range(2))
    draw = orthogonal_directions if orthogonal else torch.randn
    values = torch.stack([estimate(q, k, draw(16, 8).double()) for _ in range(4000)])
    error = (values.mean(0) - (q * k).sum(-1).exp()).abs()
    assert (error < 4 * values.std(0) / 4000**0.5).all()


def test_the_error_falls_with_the_root_of_the_features():
    """Of the estimate, and of attention itself: a slope of -1/2 in log-log."""
    q, k = (torch.randn(64, 8).double() * 0.5 for _ in range(2))
    sizes, errors = [16, 64, 256, 1024], []
    for m in sizes:
        guesses = torch.stack([estimate(q, k, torch.randn(m, 8).double()) for _ in range(60)])
        errors.append((guesses - (q * k).sum(-1).exp()).square().mean().sqrt().log().item())
    slope = (errors[-1] - errors[0]) / math.log(sizes[-1] / sizes[0])
    assert -0.6 < slope < -0.4


def test_performer_becomes_softmax_attention():
    """One layer with more and more features: its error, too, falls with their root, if keys are not
    so long that few directions decide.
    """
    mixer, x = built("performer")
    x = x / 2
    want = mixer.out(full(*heads(mixer.qkv(x), 4, 3), causal=True).flatten(2))
    sizes, errors = [32, 512, 8192], []
    for m in sizes:
        ys = []
        for _ in range(8):
            mixer.directions = orthogonal_directions(m, WIDTH // 4).double()
            ys.append(mixer(x)[0] - want)
        errors.append(torch.stack(ys).square().mean().sqrt().log().item())
    slope = (errors[-1] - errors[0]) / math.log(sizes[-1] / sizes[0])
    assert errors[0] > errors[1] > errors[2]
    assert -0.65 < slope < -0.35


def test_performer_stands_keys_of_any_size():
    mixer, x = built("performer")
    y, state = mixer.float()(30 * x.float())
    assert y.isfinite().all()
    assert state.memory.abs().max() < T * 100
    before = mixer.directions.clone()
    mixer.redraw()
    assert not torch.equal(before, mixer.directions)


def test_linformer_of_all_positions_is_attention():
    mixer, x = built("linformer", sums=T, length=T)
    with torch.no_grad():
        for weight in (mixer.key_sums, mixer.value_sums):
            weight.copy_(torch.eye(T))
    want = mixer.out(full(*heads(mixer.qkv(x), 4, 3), causal=False).flatten(2))
    assert_near(mixer(x)[0], want, what="k = n")


def test_linformer_keeps_segments_apart_and_its_past_in_sums():
    mixer, x = built("linformer", sums=5, length=9)
    resets = torch.zeros(2, T, dtype=torch.bool)
    resets[0, 4] = resets[0, 11] = resets[1, 0] = resets[1, 7] = True
    _, state = mixer(x.flip(1))
    y, after = mixer(x, state, resets)
    parts = [mixer(x[:1, :4], states.select(state, torch.tensor([0])))]
    parts += [mixer(x[:1, 4:11]), mixer(x[:1, 11:])]
    assert_near(y[:1], torch.cat([p[0] for p in parts], 1), what="row 0")
    assert_near(tuple(t[:1] for t in after), tuple(parts[-1][1]), what="state of row 0")
    want = torch.cat([mixer(x[1:, :7])[0], mixer(x[1:, 7:])[0]], 1)
    assert_near(y[1:], want, what="row 1")
    whole = mixer(x)[1]
    in_two = mixer(x[:, 10:], mixer(x[:, :10])[1])[1]
    assert_near(tuple(in_two), tuple(whole), what="the state of two stretches")


@pytest.mark.parametrize("window", [T, T + 7])
def test_longformer_with_a_window_of_all_is_attention(window):
    mixer, x = built("longformer", window=window)
    plain, _ = built("attention")
    plain.load_state_dict(mixer.state_dict())
    assert_near(mixer(x)[0], plain(x)[0], what="window >= n")


@pytest.mark.parametrize(("window", "first"), [(2, 1), (3, 2), (4, 6)])
def test_longformer_sees_what_it_says(window, first):
    """Against attention with the mask written out, at a length of more than one stretch."""
    mixer, _ = built("longformer", window=window, global_tokens=first, rotary=False)
    x = torch.randn(1, 150, WIDTH).double()
    q, k, v = (z.transpose(1, 2) for z in heads(mixer.qkv(x), 4, 3))
    t = torch.arange(150)
    age = t[:, None] - t
    seen = (age >= 0) & ((age < window) | (t < first))
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2)
    assert_near(mixer(x)[0], mixer.out(want), what="y")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("longformer", {"window": 2, "global_tokens": 1}),
        ("longformer", {"window": 3, "global_tokens": 5}),
        ("lsh_attention", {"buckets": 2, "rounds": 3}),
        ("lsh_attention", {"buckets": 8, "rounds": 1}),
        ("performer", {"features": 5}),
    ],
    ids=str,
)
def test_laws_of_other_options(name, options):
    mixer, x = built(name, **options)
    state, resets = states.detach(mixer(x.flip(1))[1]), torch.rand(2, T) < 0.15
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    params = list(mixer.parameters())
    for cuts in ([5], [3, 3, 9, T], list(range(1, T))):
        split_law(step, (x,), state, cuts, resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)


def test_lsh_in_one_bucket_is_attention_to_all_others():
    mixer, x = built("lsh_attention", buckets=2)
    with torch.no_grad():
        mixer.query_value.weight.abs_()
        mixer.directions.abs_()
    x = x.abs()
    q, v = heads(mixer.query_value(x), 4, 2)
    scores = torch.einsum("bthk,bshk->bhts", q, F.normalize(q, dim=-1)) * q.shape[-1] ** -0.5
    hidden = torch.ones(T, T).triu().bool()
    hidden[0, 0] = False  # the first token has nobody else
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    want = mixer.out(torch.einsum("bhts,bshk->bthk", weights, v).flatten(2))
    assert_near(mixer(x)[0], want, what="y")


def test_both_ways_to_look_into_buckets_agree():
    q, v = (torch.randn(2, T, 3, 4).double() for _ in range(2))
    buckets = torch.randint(4, (2, T, 3, 2))
    segment = torch.randint(3, (2, T)).sort(1).values
    want = all_pairs(q, v, buckets, segment, T)
    assert_near(by_bucket(q, v, buckets, segment, 4), want, what="by bucket")


def test_near_neighbours_are_found_and_more_so_in_more_rounds():
    """Recall of the nearest past key, over 400 unit vectors with a planted neighbour each."""
    base = F.normalize(torch.randn(200, 32), dim=-1)
    near = F.normalize(base + 0.3 * F.normalize(torch.randn(200, 32), dim=-1), dim=-1)
    recall, chance = [], []
    for rounds in (1, 2, 4, 8):
        mixer = MIXERS["lsh_attention"](heads=1, buckets=16, rounds=rounds).build(32)
        found = []
        for x in (base, near):
            turned = torch.einsum("sk,rkc->src", x, mixer.directions[:, 0])
            found.append(torch.cat([turned, -turned], -1).argmax(-1))
        recall.append((found[0] == found[1]).any(-1).float().mean().item())
        chance.append((found[0] == found[1].roll(1, 0)).any(-1).float().mean().item())
    assert recall == sorted(recall)
    assert recall[0] > 0.5
    assert recall[-1] > 0.95
    assert all(r > c + 0.3 for r, c in zip(recall, chance, strict=True))


@pytest.mark.plain
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("performer", {"heads": 3}, "must divide"),
        ("performer", {"features": 0}, "features at least 1"),
        ("linformer", {"sums": 0}, "sums and length at least 1"),
        ("longformer", {"heads": 16}, "even head size"),
        ("longformer", {"window": 1}, "window at least 2"),
        ("longformer", {"global_tokens": 0}, "take attention"),
        ("lsh_attention", {"buckets": 3}, "an even number of buckets"),
        ("lsh_attention", {"rounds": 0}, "rounds at least 1"),
    ],
)
def test_errors_say_what_to_fix(name, options, message):
    with pytest.raises(ValueError, match=message):
        built(name, **options)
