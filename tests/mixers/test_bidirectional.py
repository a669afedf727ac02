"""Mixers that read both ways: their equations, their use of resets, and what they refuse."""

import pytest
import torch
from laws import assert_near, reset_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.mixers import MIXERS

WIDTH, T = 16, 20
NAMES = ("hydra", "bi_gla", "bi_mamba")
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


@pytest.mark.parametrize("keep", [0, 5, 50])
def test_a_gate_of_1_or_0_is_a_pure_direction_of_bi_mamba(keep):
    mixer, x = built("bi_mamba", keep=keep)
    turned = max(T - keep, 0)
    flip = lambda a: torch.cat([a[:, :turned].flip(1), a[:, turned:]], 1)  # noqa: E731
    for bias, want in ((1e3, mixer.mamba(x)[0]), (-1e3, flip(mixer.mamba(flip(x))[0]))):
        torch.nn.init.constant_(mixer.gate.bias, bias)
        assert_near(mixer(x)[0], want, what=f"gate {bias}")


@pytest.mark.parametrize("name", NAMES)
def test_packed_sequences_stay_apart(name):
    """The reset law holds both ways: neither direction crosses a reset."""
    mixer, x = built(name)
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
