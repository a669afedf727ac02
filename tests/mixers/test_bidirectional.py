"""Mixers that read both ways: their equations, their use of resets, and what they refuse."""

from itertools import pairwise

import pytest
import torch
from laws import assert_near, reset_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.layers.bidirectional import mirror
from stepscan.mixers import MIXERS

WIDTH, T = 16, 20
NAMES = ("hydra", "bi_gla", "bi_mamba", "sigma")
BOTH_WAYS = [*((name, {}) for name in NAMES), ("attention", {"causal": False})]
COMBINE = ("quasiseparable", "add", "multiply", "concatenate")


def built(name, **options):
    return MIXERS[name](**options).build(WIDTH).double(), torch.randn(2, T, WIDTH).double()


def scan(C, B, x, dt, rate):
    """Mamba-2's recurrence, one head, from left to right."""
    S, ys = torch.zeros(B.shape[1], x.shape[1]).double(), []
    for t in range(len(x)):
        S = torch.exp(-rate * dt[t]) * S + dt[t] * torch.outer(B[t], x[t])
        ys.append(C[t] @ S)
    return torch.stack(ys)


@pytest.mark.parametrize("combine", COMBINE)
def test_hydra_is_two_passes_and_a_diagonal(combine):
    mixer, x = built("hydra", states=3, combine=combine)
    u = mixer.inputs(x[0])
    z, inner, step = u.split(mixer.sizes, -1)
    padded = F.pad(inner.T, (3, 3))
    inner = F.silu(F.conv1d(padded, mixer.conv.weight[:, None], mixer.conv.bias, groups=44).T)
    v, B, C, B_back, C_back = inner.split([32, 3, 3, 3, 3], -1)
    dt = F.softplus(step.view(T, 2, 4) + mixer.step_bias)
    heads = []
    for h in range(4):
        own, rate = v[:, 8 * h : 8 * h + 8], mixer.A_log[h].exp()
        ahead = scan(C, B, own, dt[:, 0, h], rate)
        back = scan(C_back.flip(0), B_back.flip(0), own.flip(0), dt[:, 1, h].flip(0), rate).flip(0)
        if combine == "quasiseparable":
            ahead, back = F.pad(ahead[:-1], (0, 0, 1, 0)), F.pad(back[1:], (0, 0, 0, 1))
        heads.append((ahead, back, own * (v @ mixer.diagonal.weight[h] + mixer.D[h])[:, None]))
    ahead, back, own = (torch.cat(part, 1) for part in zip(*heads, strict=True))
    if combine == "concatenate":
        y = torch.cat([ahead, back], 1) @ mixer.join.weight.T
    else:
        y = ahead * back if combine == "multiply" else ahead + back
    want = mixer.out(mixer.norm(y + own) * F.silu(z))
    assert_near(mixer(x)[0][0], want, what=combine)


def test_bi_gla_is_gated_attention_from_both_sides():
    mixer, x = built("bi_gla")
    conv, D = mixer.conv.weight[:, None], WIDTH
    local = F.silu(F.conv1d(x[0].T, conv, padding=1, groups=D).T)
    q, k, v = (mixer.qkv(local)).split([8, 8, 16], -1)
    ahead, back = (F.logsigmoid(mixer.decay(local)) / 16).chunk(2, -1)
    heads = []
    for h in range(2):
        key, value = slice(4 * h, 4 * h + 4), slice(8 * h, 8 * h + 8)
        y = torch.zeros(T, 8).double()
        for s in range(T):
            for t in range(T):
                g = ahead[s + 1 : t + 1] if t >= s else back[t:s]
                kept = g[:, key].sum(0).exp()
                y[t] += (2 if s == t else 1) * (q[t, key] * kept * k[s, key]).sum() * v[s, value]
        heads.append(mixer.norm(y / 2 / 2))  # the mean of both, over sqrt(K)
    gate = torch.sigmoid(mixer.gate(local))
    near = mixer.local_norm(local.view(T, 2, 8)).flatten(1)
    want = mixer.out(gate * torch.cat(heads, 1) + (1 - gate) * near)
    assert_near(mixer(x)[0][0], want, what="bi_gla")


def test_attention_both_ways_is_softmax_over_the_segment_and_the_past():
    mixer, x = built("attention", causal=False, heads=2)
    resets = torch.zeros(2, T, dtype=torch.bool)
    resets[0, [4, 11]] = True
    early = torch.randn(2, 3, WIDTH).double()
    _, state = mixer(early)
    y, _ = mixer(x, state, resets)
    bare = MIXERS["attention"](causal=False, heads=2, rotary=False).build(WIDTH).double()
    bare.load_state_dict(mixer.state_dict())
    for row, cuts in ((0, [0, 4, 11, T]), (1, [0, T])):
        for begin, end in pairwise(cuts):
            past = early[row] if begin == 0 else x[row, :0]
            segment = torch.cat([past, x[row, begin:end]])
            q, k, v = bare.qkv(segment).view(len(segment), 3, 2, 8).unbind(1)
            plain = torch.einsum("qhk,shk->hqs", q, k) / 8**0.5
            want = bare.out(torch.einsum("hqs,shv->qhv", plain.softmax(-1), v).flatten(1))
            assert_near(bare(segment[None])[0][0], want, what="without positions")
            both, _ = mixer(segment[None])
            assert_near(y[row, begin:end], both[0, len(past) :], what="with the past")


@pytest.mark.parametrize("keep", [0, 5, 50])
def test_a_gate_of_1_or_0_is_a_pure_direction_of_bi_mamba(keep):
    mixer, x = built("bi_mamba", keep=keep)
    turned = max(T - keep, 0)
    flip = lambda a: torch.cat([a[:, :turned].flip(1), a[:, turned:]], 1)  # noqa: E731
    for bias, want in ((1e3, mixer.mamba(x)[0]), (-1e3, flip(mixer.mamba(flip(x))[0]))):
        torch.nn.init.constant_(mixer.gate.bias, bias)
        assert_near(mixer(x)[0], want, what=f"gate {bias}")


def test_mirroring_all_but_the_last_is_its_own_inverse_and_leaves_them_in_place():
    x, resets = torch.randn(2, T, 3), torch.rand(2, T) < 0.2
    for keep in (0, 3, 5, T, 50):
        turned = mirror(x, None, keep)
        assert torch.equal(turned[:, max(T - keep, 0) :], x[:, max(T - keep, 0) :])
        assert torch.equal(turned[:, : max(T - keep, 0)], x[:, : max(T - keep, 0)].flip(1))
        assert torch.equal(mirror(turned, None, keep), x)
        assert torch.equal(mirror(mirror(x, resets, keep), resets, keep), x)


def test_sigma_is_bi_mamba_and_a_gru_over_three_items():
    mixer, x = built("sigma", keep=5)
    own, conv = mixer.gru, mixer.conv.weight[:, None]
    near = F.conv1d(x.mT, conv, mixer.conv.bias, padding=1, groups=WIDTH).mT
    peer = torch.nn.GRU(WIDTH, WIDTH, batch_first=True).double()
    own.load_torch(peer)
    a = mixer.shares.softmax(0)
    want = mixer.out(a[0] * mixer.flipped(x)[0] + a[1] * peer(near)[0])
    assert_near(mixer(x)[0], want, what="sigma")
    assert_near(a.float(), torch.tensor([0.9, 0.1]), what="published shares")
    for bias, pure in ((1e3, x), (-1e3, mirror(x, None, 5))):
        torch.nn.init.constant_(mixer.flipped.gate.bias, bias)
        one = mixer.flipped.mamba(pure)[0]
        one = one if bias > 0 else mirror(one, None, 5)
        assert_near(mixer(x)[0], mixer.out(a[0] * one + a[1] * peer(near)[0]), what=f"gate {bias}")


@pytest.mark.parametrize(("name", "options"), BOTH_WAYS)
def test_packed_sequences_stay_apart(name, options):
    """The reset law holds both ways: neither direction crosses a reset."""
    mixer, x = built(name, **options)
    state, resets = states.detach(mixer(x)[1]), torch.rand(2, T) < 0.2
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    reset_law(step, (x,), state, resets, params=list(mixer.parameters()))


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [("hydra", {}, 0), ("bi_gla", {}, 0), ("bi_mamba", {"keep": 0}, 0), ("bi_mamba", {}, 5)],
)
def test_every_token_sees_every_other_but_those_kept_in_place(name, options, kept):
    mixer, x = built(name, **options)
    J = torch.autograd.functional.jacobian(lambda x: mixer(x)[0][0], x[:1])[:, :, 0]
    sees = J.abs().sum((1, 3)) > 0  # [t, s]
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    want = torch.ones(T, T, dtype=torch.bool)
    want[:, T - kept :] = causal[:, T - kept :]
    assert torch.equal(sees, want)


@pytest.mark.plain
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("hydra", {"combine": "sum"}, "way for hydra to combine"),
        ("hydra", {"heads": 5}, "heads=5 must divide the inner width 32"),
        ("hydra", {"groups": 3}, "groups=3 the heads"),
        ("hydra", {"states": 0}, "states=0"),
        ("hydra", {"window": 4}, "want an odd window, got 4"),
        ("bi_gla", {"heads": 3}, "heads=3 must divide width=16"),
        ("bi_gla", {"window": 2}, "want an odd window, got 2"),
        ("bi_mamba", {"keep": -1}, "want keep at least 0, got -1"),
        ("bi_mamba", {"states": 0}, "states=0"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](**options).build(WIDTH)
