import itertools
import math

import pytest
import torch
from laws import assert_near, causal_law, live_law, reset_law, rows_law, split_law

from stepscan import state as states
from stepscan.mixers import MIXERS

OPTIONS = (
    {"key_value_heads": 2},
    {"window": 5},
    {"rotary": False},
    {"key_value_heads": 1, "window": 4, "qk_norm": True, "rotary_base": 500.0},
    {"key_value_heads": 2, "output_gate": True},
    {"key_value_heads": 2, "qk_norm": True, "qk_norm_whole": True, "norm_eps": 0.1},
    {"heads": 3, "head_size": 6, "qkv_bias": True, "out_bias": True, "rotary_part": 0.67},
    {"heads": 2, "head_size": 8, "rotary_stretch": (4.0, 0.1, 0.5, 9.0), "rotary_base": 100.0},
)
every_option = pytest.mark.parametrize("options", OPTIONS, ids=str)
WIDTH, T = 16, 20


@every_option
def test_laws_hold_for_every_option(options):
    mixer = MIXERS["attention"](**options).build(WIDTH).double()
    x, resets = torch.randn(3, T, WIDTH).double(), torch.rand(3, T) < 0.15
    early = torch.zeros(3, T, dtype=torch.bool)
    early[0, 15] = True  # so the rows stand at different positions
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    state, params = states.detach(mixer(x, None, early)[1]), list(mixer.parameters())
    for cuts in ([0, 7], [3, 3, 9, T], list(range(1, T))):
        split_law(step, (x,), state, cuts, params=params)
        split_law(step, (x,), state, cuts, resets=resets, params=params)
    reset_law(step, (x,), state, resets, params=params)
    rows_law(step, (x,), state, resets=resets, params=params)
    causal_law(step, (x,), 9)
    live_law(MIXERS["attention"](**options).build(WIDTH), x.float())


@pytest.mark.parametrize("options", [{}, *OPTIONS], ids=str)
def test_equals_attention_written_out(options):
    """Plain loops over b, t, h, j with rotations as complex numbers; a reset is a new sequence."""
    config = MIXERS["attention"](**options)
    mixer, x = config.build(WIDTH).double(), torch.randn(2, 9, WIDTH).double()
    no = torch.zeros(99).double()
    qkv_bias, out_bias = (
        no[: len(map_.weight)] if map_.bias is None else map_.bias.detach().normal_()
        for map_ in (mixer.qkv, mixer.out)
    )
    resets = torch.zeros(2, 9, dtype=torch.bool)
    resets[1, 4] = True
    y, _ = mixer(x, None, resets)
    H, K = config.heads, config.head_size or WIDTH // config.heads
    G, turned = config.key_value_heads or H, round(K * config.rotary_part)

    def slowed(speed):
        if config.rotary_stretch is None:
            return speed
        factor, low, high, original = config.rotary_stretch
        turns = original / (2 * math.pi / speed)
        if turns < low:
            return speed / factor
        kept = (turns - low) / (high - low)
        return speed if turns > high else (1 - kept) * speed / factor + kept * speed

    speeds = [slowed(config.rotary_base ** (-2 * i / turned)) for i in range(turned // 2)]

    def head(x_t, at, position):
        rows = slice(at * K, (at + 1) * K)
        part = mixer.qkv.weight[rows] @ x_t + qkv_bias[rows]
        if config.qk_norm:
            kin = range(H) if at < H else range(H, H + G)  # normed together
            kin = list(kin) if config.qk_norm_whole else [at]
            square = (mixer.qkv.weight.view(-1, K, WIDTH)[kin] @ x_t).square().mean()
            part = part / (square + (config.norm_eps or torch.finfo(part.dtype).eps)).sqrt()
        if not config.rotary:
            return part
        turns = torch.tensor([complex(0, position * s) for s in speeds], dtype=torch.complex128)
        half = turned // 2
        pairs = torch.complex(part[:half], part[half:turned]) * turns.exp()
        return torch.cat([pairs.real, pairs.imag, part[turned:]])

    for b, t in itertools.product(range(2), range(9)):
        start = 4 if b == 1 and t >= 4 else 0
        past = range(max(start, t - (config.window or 9) + 1), t + 1)
        heads = []
        for h in range(H):
            g = h * G // H
            q = head(x[b, t], h, t - start)
            keys = [head(x[b, j], H + g, j - start) for j in past]
            weights = torch.stack([q @ k / math.sqrt(K) for k in keys]).softmax(0)
            rows = slice((H + G + g) * K, (H + G + g + 1) * K)
            values = torch.stack([mixer.qkv.weight[rows] @ x[b, j] + qkv_bias[rows] for j in past])
            heads.append(weights @ values)
        read = torch.cat(heads)
        if config.output_gate:
            read = read / (1 + (-(mixer.gate.weight @ x[b, t])).exp())
        assert_near(y[b, t], mixer.out.weight @ read + out_bias, what=f"y[{b}, {t}]")


def test_initial_values_are_xavier_uniform_for_each_map():
    mixer = MIXERS["attention"](key_value_heads=1).build(64)
    q, k, v = mixer.qkv.weight.split((64, 16, 16))
    for weight in (q, k, v, mixer.out.weight):
        bound = math.sqrt(6 / sum(weight.shape))
        assert 0.97 * bound < weight.abs().max() <= bound


def test_a_window_bounds_the_state():
    mixer, state = MIXERS["attention"](window=4).build(WIDTH), None
    for _ in range(6):
        _, state = mixer(torch.randn(2, 3, WIDTH), state)
    assert state.keys.shape[1] == 3
    assert state.length.tolist() == [18, 18]
    assert state.keys.untyped_storage().nbytes() == state.keys.nbytes


@pytest.mark.plain
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "heads=3 must divide width=16"),
        ({"key_value_heads": 3}, "key_value_heads=3 must divide heads=4"),
        ({"heads": 16}, "rotary wants an even head size, width / heads is 1"),
        ({"window": 1}, "want window at least 2 or None, got 1"),
        ({"head_size": 0}, "want head_size at least 1 or None, got 0"),
        ({"rotary_part": 0.75}, "width / heads is 4, of which rotary_part=0.75 turns 3"),
        ({"rotary_stretch": (2.0, 4.0, 1.0, 9.0)}, r"low < high, got \(2\.0, 4\.0"),
    ],
)
def test_errors_say_what_to_fix(options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS["attention"](**options).build(WIDTH)
