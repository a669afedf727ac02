"""SeqBoat and Oryx: which tokens attention answers, and that nothing else changes."""

import pytest
import torch
from laws import assert_near, causal_law, live_law, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.layers.mlp import SwiGLU
from stepscan.layers.rotary import rotate
from stepscan.mixers.oryx import OryxConfig
from stepscan.mixers.seqboat import SeqBoatConfig

WIDTH, T = 16, 20
OPTIONS = {
    "window": SeqBoatConfig(window=3, states=2, shared_size=5),
    "span": OryxConfig(span=3, heads=2),
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


def built(threshold=0.0, **options):
    """A SeqBoat whose router's bias moves the share of active tokens."""
    mixer = SeqBoatConfig(window=4, states=3, shared_size=5, **options).build(WIDTH).double()
    with torch.no_grad():
        mixer.router.bias.copy_(torch.tensor([threshold, 0.0]))
    return mixer


@pytest.mark.parametrize("threshold", [-9.0, 0.0, 9.0])
def test_compressed_tokens_equal_dense_attention_under_a_mask(threshold):
    """All pairs of tokens, hidden where either is not active or `window` active ones lie between;
    the moving average as a loop.
    """
    mixer, x = built(threshold), torch.randn(1, T, WIDTH).double()
    y, _ = mixer(x)
    average, h = mixer.average, torch.zeros(WIDTH, 3).double()
    alpha, delta = average.alpha.sigmoid(), average.delta.sigmoid()
    us = []
    for x_t in x[0]:
        h = (1 - alpha * delta) * h + alpha * average.beta * x_t[:, None]
        us.append((average.gamma * h).sum(1) / 3**0.5 + average.omega * x_t)
    u = F.silu(torch.stack(us))
    p = (mixer.router(u) / mixer.log_temperature.exp()).softmax(-1)
    active = p[:, 1] > p[:, 0]
    assert active.float().mean() == {-9.0: 1.0, 9.0: 0.0}.get(threshold, active.float().mean())
    count = active.cumsum(0)
    distance = count[:, None] - count
    seen = active[:, None] & active & (distance < 4) & torch.ones(T, T).tril().bool()
    z = F.silu(mixer.shared(u))
    q, k = (z * s + o for s, o in zip(mixer.scale, mixer.offset, strict=True))
    scores = q @ k.T / 5**0.5 + mixer.bias[0, distance.clamp(0, 3)]
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1).nan_to_num()
    a = F.silu(mixer.gate(u)) * (weights @ F.silu(mixer.value(x[0])))
    want = F.silu(mixer.out(u) + p[:, 1:] * mixer.attended(a) + x[0])
    assert_near(y[0], want, what="y")


def test_the_gate_learns_through_its_probability():
    mixer = built()
    mixer(torch.randn(2, T, WIDTH).double())[0].square().sum().backward()
    for p in (mixer.router.weight, mixer.router.bias, mixer.log_temperature):
        assert p.grad.any()
    silent = built(9.0)  # no active token: nothing to learn from
    silent(torch.randn(2, T, WIDTH).double())[0].square().sum().backward()
    assert not silent.attended.weight.grad.any()


@pytest.mark.parametrize(("threshold", "low", "high"), [(-9.0, T, T), (0.0, 1, T - 1), (9.0, 0, 0)])
def test_attention_works_on_active_tokens_only(threshold, low, high, monkeypatch):
    mixer, lengths = built(threshold), []
    attend = mixer._attend

    def counted(x, *rest):
        lengths.append(x.shape[2])
        return attend(x, *rest)

    monkeypatch.setattr(mixer, "_attend", counted)
    mixer(torch.randn(1, T, WIDTH).double())
    assert low <= lengths[0] <= high


def test_switching_equals_both_modes_in_full_and_a_choice():
    mixer, x = OryxConfig().build(WIDTH).double(), torch.randn(2, T, WIDTH).double()
    resets = torch.rand(2, T) < 0.1
    both = {}
    for mixer.mode in ("attention", "recurrent"):
        both[mixer.mode], _ = mixer(x, None, resets)
    for cut in range(T + 1):
        attend = (torch.arange(T) >= cut).expand(2, T)
        y, _ = mixer(x, None, resets, attend)
        want = torch.where(attend[..., None], both["attention"], both["recurrent"])
        assert_near(y, want, what=f"switched at {cut}")
        first, state = mixer(x[:, :cut], None, resets[:, :cut], attend[:, :cut])
        mixer.mode = "attention"  # as a caller switches, between two calls
        last, _ = mixer(x[:, cut:], state, resets[:, cut:])
        assert_near(torch.cat([first, last], 1), want, what=f"in two calls at {cut}")


def test_equals_attention_and_the_delta_rule_written_out():
    mixer, x = (
        OryxConfig(heads=2, window=1).build(WIDTH).double(),
        torch.randn(1, 9, WIDTH).double(),
    )
    qqkv = F.silu(mixer.qqkv(x[0]) * mixer.conv.weight[:, 0])
    q_a, q_r, k, v = (z.unflatten(1, (2, -1)) for z in qqkv.split(mixer.sizes, -1))
    unit = lambda z: z / (z.square().sum(-1, keepdim=True) + 1e-6).sqrt()  # noqa: E731
    place = torch.arange(9)[None]
    turned = lambda z: rotate(z[None], place)[0]  # noqa: E731
    scores = 2 * torch.einsum("thk,jhk->htj", turned(unit(q_a)), turned(unit(k)))
    scores = scores * mixer.scale[:, None, None]
    weights = scores.masked_fill(~torch.ones(9, 9).tril().bool(), -torch.inf).softmax(-1)
    seen = torch.einsum("htj,jhv->thv", weights, v)
    S, reads = torch.zeros(2, 4, 12).double(), []
    beta, alpha = torch.sigmoid(mixer.strength(x[0])), mixer.decay(x)[0].exp()
    for t in range(9):
        S = S * alpha[t, :, None, None]
        key = unit(k[t])
        error = v[t] - torch.einsum("hkv,hk->hv", S, key)
        S = S + torch.einsum("hk,hv->hkv", beta[t, :, None] * key, error)
        reads.append(torch.einsum("hkv,hk->hv", S, unit(q_r[t])) / 2)
    for mixer.mode, read in (("attention", seen), ("recurrent", torch.stack(reads))):
        want = mixer.out(mixer.norm(read).flatten(1) * F.silu(mixer.gate(x[0])))
        assert_near(mixer(x)[0][0], want, what=mixer.mode)


def test_nine_tenths_of_a_block_are_shared():
    mixer = OryxConfig().build(64)
    own = 2 * mixer.sizes[0] * (64 + 4) + sum(
        p.numel() for part in (mixer.strength, mixer.decay) for p in part.parameters()
    )
    every = (*mixer.parameters(), *SwiGLU(64, 2.0).parameters())
    assert 1 - own / sum(p.numel() for p in every) >= 0.9


@pytest.mark.plain
def test_errors_say_what_to_fix():
    for config, match in (
        (SeqBoatConfig(window=1), "want window at least 2"),
        (SeqBoatConfig(shared_size=0), "want values and shared_size at least 1"),
        (SeqBoatConfig(states=0), "want states at least 1, got 0"),
        (OryxConfig(mode="attend"), "Did you mean 'attention'"),
        (OryxConfig(heads=3), "heads=3 must divide keys=8 and values=24"),
        (OryxConfig(heads=8), "rotations want an even head size, keys / heads is 1"),
        (OryxConfig(span=0), "want span at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=match):
            config.build(WIDTH)
