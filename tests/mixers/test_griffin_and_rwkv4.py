"""RG-LRU, RWKV-4: loops over the papers' equations, and what the equations promise."""

import numpy as np
import pytest
import torch

from stepscan.mixers.rg_lru import RGLRUConfig
from stepscan.mixers.rwkv4 import RWKV4Config
from stepscan.mixers.rwkv4_channel import RWKV4ChannelConfig
from stepscan.ops.softmax_scan import softmax_scan

WIDTH, T = 16, 24


def awake(config, width=WIDTH, dtype=torch.float64):
    """A mixer some way from its initial values."""
    mixer = config.build(width).to(dtype)
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return mixer


def arrays(mixer):
    return {name: p.detach().numpy() for name, p in mixer.named_parameters()}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def griffin_loop(mixer, x):
    """The equations of the paper for one sequence, token by token; the hidden states, too."""
    p, inner = arrays(mixer), len(mixer.rate)
    window = mixer.config.window
    past, h, ys = np.zeros((window, inner)), np.zeros(inner), []
    for t, x_t in enumerate(x):
        past = np.concatenate([past[1:], [p["input.weight"] @ x_t + p["input.bias"]]])
        u = (p["conv.weight"].T * past).sum(0) + p["conv.bias"]
        gates = []
        for weight, bias in zip(p["gate_weight"], p["gate_bias"], strict=True):
            parts = u.reshape(len(weight), -1)
            mixed = [block @ part for block, part in zip(weight, parts, strict=True)]
            gates.append(sigmoid(np.concatenate(mixed) + bias))
        a = np.exp(-8 * gates[0] * np.log1p(np.exp(p["rate"])))
        room = 1.0 if mixer.config.whole_start and t == 0 else np.sqrt(1 - a * a)
        h = a * h + room * gates[1] * u
        z = p["gate.weight"] @ x_t + p["gate.bias"]
        gelu = z / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        ys.append(p["out.weight"] @ (h * gelu) + p["out.bias"])
    return np.stack(ys), h


@pytest.mark.parametrize("whole_start", [True, False])
@pytest.mark.parametrize("heads", [1, 4])
def test_rg_lru_equals_a_loop_over_the_equations(heads, whole_start):
    mixer = awake(RGLRUConfig(heads=heads, window=3, whole_start=whole_start))
    x = torch.randn(2, T, WIDTH, dtype=torch.float64)
    y, state = mixer(x)
    for row in range(2):
        want, hidden = griffin_loop(mixer, x[row].numpy())
        np.testing.assert_allclose(y[row].detach().numpy(), want, atol=1e-10)
        np.testing.assert_allclose(state.hidden[row].detach().numpy(), hidden, atol=1e-10)


def hidden_states(mixer, x, resets=None):
    """h after every token."""
    state, out = mixer.init_state(len(x)), []
    for t in range(x.shape[1]):
        _, state = mixer(x[:, t : t + 1], state, None if resets is None else resets[:, t : t + 1])
        out.append(state.hidden)
    return torch.stack(out, 1)


def test_rg_lru_keeps_the_variance_of_white_noise_from_its_first_token_on():
    """With constant gates the weights of all tokens in h have squares that sum to 1, always."""
    mixer = RGLRUConfig(window=1, heads=1, expansion=1.0).build(T).double()
    with torch.no_grad():
        mixer.input.weight.copy_(torch.eye(T))
        mixer.conv.weight.fill_(1.0)
        mixer.gate_weight.zero_()
        mixer.gate_bias[0] = torch.randn(1).double()  # the same decay for all channels
        mixer.gate_bias[1] = 50.0  # the input gate open
        mixer.rate.fill_(-2.0)
    x = torch.eye(T, dtype=torch.float64)[None]  # channel j of h holds the weight of token j
    squares = hidden_states(mixer, x)[0].square().sum(-1)
    torch.testing.assert_close(squares, torch.ones_like(squares), rtol=0, atol=1e-12)
    resets = torch.zeros(1, T, dtype=torch.bool)
    resets[0, 7] = True
    torch.testing.assert_close(hidden_states(mixer, x, resets)[0].square().sum(-1), squares)
    mixer.config = RGLRUConfig(window=1, heads=1, expansion=1.0, whole_start=False)
    damped = hidden_states(mixer, x)[0].square().sum(-1)
    log_decay = -8 * torch.sigmoid(mixer.gate_bias[0, 0]) * np.log1p(np.exp(-2.0))
    want = 1 - (2 * log_decay * torch.arange(1, T + 1)).exp()
    torch.testing.assert_close(damped, want)


def test_a_shut_gate_holds_h_for_ever_and_gradients_stay_finite():
    mixer = RGLRUConfig(window=1).build(WIDTH)
    x = torch.randn(2, T, WIDTH, requires_grad=True)
    with torch.no_grad():
        mixer.gate_weight.zero_()
        mixer.gate_bias[0] = -200.0  # in float32 a = 1 to the last bit
    h = hidden_states(mixer, x)
    assert h[:, 0].abs().max() > 0.01
    torch.testing.assert_close(h, h[:, :1].expand_as(h))
    mixer(x)[0].square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())
    assert x.grad.isfinite().all()


def test_initial_decays_of_rg_lru_lie_in_the_published_ring():
    mixer = RGLRUConfig(layers=3).build(256)
    base = (-torch.nn.functional.softplus(mixer.rate)).exp()
    assert 0.9 <= base.min() < 0.91
    assert 0.99 < base.max() <= 0.999
    assert abs(base.square().mean() - (0.81 + 0.998001) / 2) < 0.02


def time_mix_loop(mixer, x, exp=np.exp):
    """The equations of the paper for one sequence, sums and all."""
    p, last = arrays(mixer), np.zeros(x.shape[1])
    a = b = np.zeros(len(p["decay"]))
    ys = []
    for x_t in x:
        x_r, x_k, x_v = p["mix"] * x_t + (1 - p["mix"]) * last
        last = x_t
        r, k, v = p["receptance.weight"] @ x_r, p["key.weight"] @ x_k, p["value.weight"] @ x_v
        now = exp(p["bonus"] + k)
        ys.append(p["out.weight"] @ (sigmoid(r) * ((a + now * v) / (b + now)).astype(float)))
        fade = exp(-np.exp(p["decay"]))
        a, b = fade * a + exp(k) * v, fade * b + exp(k)
    return np.stack(ys)


@pytest.mark.parametrize("expansion", [1.0, 1.5])
def test_rwkv4_equals_a_loop_over_the_equations(expansion):
    mixer = awake(RWKV4Config(expansion=expansion, layer=1, layers=3))
    x = torch.randn(2, T, WIDTH, dtype=torch.float64)
    y, _ = mixer(x)
    for row in range(2):
        want = time_mix_loop(mixer, x[row].numpy())
        np.testing.assert_allclose(y[row].detach().numpy(), want, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_rwkv4_takes_keys_whose_exponentials_overflow(dtype):
    """Sums in extended exponents (x87) are the judge: float64 itself overflows here."""
    mixer = awake(RWKV4Config())
    with torch.no_grad():
        mixer.key.weight.mul_(400 / mixer.key.weight.norm(dim=1).max())
        mixer.decay.add_(3.0)
    x = torch.randn(1, T, WIDTH, dtype=torch.float64)
    wide = lambda z: np.exp(np.asarray(z, dtype=np.longdouble))  # noqa: E731
    with np.errstate(over="ignore", invalid="ignore"):
        assert not np.isfinite(time_mix_loop(mixer, x[0].numpy())).all()
    want = time_mix_loop(mixer, x[0].numpy(), wide)
    assert np.isfinite(want).all()
    y, _ = mixer.to(dtype)(x.to(dtype))
    # In float32 the keys themselves are rounded at 1e3, and their differences decide.
    atol = {torch.float64: 1e-9, torch.float32: 1e-2}[dtype]
    np.testing.assert_allclose(y[0].double().detach().numpy(), want, atol=atol)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in mixer.parameters())


def test_rwkv4_without_decay_and_bonus_is_the_running_softmax():
    mixer = awake(RWKV4Config())
    with torch.no_grad():
        mixer.decay.fill_(-torch.inf)
        mixer.bonus.zero_()
        mixer.mix.fill_(1.0)
    x = torch.randn(2, T, WIDTH, dtype=torch.float64)
    want, _ = softmax_scan(mixer.key(x), mixer.value(x)[..., None])
    want = mixer.out(torch.sigmoid(mixer.receptance(x)) * want[..., 0])
    torch.testing.assert_close(mixer(x)[0], want, rtol=0, atol=1e-10)


def test_rwkv4_reads_the_present_by_its_bonus_alone():
    """A large bonus leaves nothing but the present, a small one all but it."""
    mixer, x = awake(RWKV4Config()), torch.randn(1, T, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        mixer.mix.fill_(1.0)  # no token shift: what is seen of the past is seen through wkv
        mixer.bonus.fill_(60.0)
    other = x.clone()
    other[:, :9] += 1.0
    torch.testing.assert_close(mixer(x)[0][:, 9:], mixer(other)[0][:, 9:])
    with torch.no_grad():
        mixer.bonus.fill_(-60.0)
        mixer.receptance.weight.zero_()
    other = x.clone()
    other[:, 9] += 1.0
    y, changed = mixer(x)[0], mixer(other)[0]
    torch.testing.assert_close(y[:, 9], changed[:, 9])
    assert not torch.allclose(y[:, 10:], changed[:, 10:], atol=1e-3)


def test_rwkv4_channel_equals_its_equation_and_sees_one_token_back():
    mixer = awake(RWKV4ChannelConfig(expansion=3.0))
    x = torch.randn(2, T, WIDTH, dtype=torch.float64)
    p, y = arrays(mixer), mixer(x)[0].detach().numpy()
    for t in range(T):
        now, last = x[0, t].numpy(), x[0, t - 1].numpy() if t else np.zeros(WIDTH)
        x_r, x_k = p["mix"] * now + (1 - p["mix"]) * last
        hidden = np.maximum(p["key.weight"] @ x_k, 0) ** 2
        want = sigmoid(p["receptance.weight"] @ x_r) * (p["value.weight"] @ hidden)
        np.testing.assert_allclose(y[0, t], want, atol=1e-10)
    other = x.clone()
    other[:, 8] += 1.0
    moved = (mixer(other)[0].detach().numpy() != y).any((0, 2))
    assert moved.nonzero()[0].tolist() == [8, 9]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (RGLRUConfig(heads=0), "heads, window and layers"),
        (RGLRUConfig(window=0), "heads, window and layers"),
        (RGLRUConfig(expansion=0.01), "less than one channel"),
        (RWKV4Config(expansion=0.05), "at least 2"),
        (RWKV4Config(layer=3, layers=3), "layer < layers"),
        (RWKV4ChannelConfig(expansion=0.0), "expansion above 0"),
        (RWKV4ChannelConfig(layer=-1), "layer < layers"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        config.build(WIDTH)
