"""Linear memories without an erasing write, beside fla's naive functions."""

import torch
from published import Case

from stepscan.layers.linear_reads import read_before_write
from stepscan.layers.taylor import TaylorFeatures
from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.linear_scan import linear_scan
from stepscan.ops.log_linear_attention import log_linear_attention
from stepscan.ops.slot_attention import SlotState, slot_attention

QKV = {"q": "BTHK", "k": "BTHK", "v": "BTHV"}


def heads_first(*xs):
    """Their [B H T ...] of our [B T H ...], and back."""
    return [x.transpose(1, 2) for x in xs]


def scaled(q):
    """They divide q by sqrt(K) themselves."""
    return q * q.shape[-1] ** -0.5


def linear(q, k, v, g=None, state=None, **options):
    return linear_attention(scaled(q), k, v, log_decay=g, state=state, **options)


def decay_after_write(q, k, v, g, state):
    return linear(q, k * g.exp()[..., None], v, g, state)


def call_normalized(f, q, k, v, memory, sums):
    y, (memory, sums) = f(
        q, k, v, initial_state=(memory, sums[:, None]), output_final_state=True, normalize=True
    )
    return y, memory, sums[:, 0]


def normalized(q, k, v, memory, sums, normalize=True):
    state = torch.cat([memory, sums[..., None]], -1)  # the sums are one more column of ours
    y, state = linear(q, k, v, state=state, normalize=normalize)
    return y, state[..., :-1], state[..., -1]


def rwkv6(q, k, v, g, u, state):
    y, state = read_before_write(scaled(q), k, v, log_decay=g, state=state)
    return y + (scaled(q) * u * k).sum(-1, keepdim=True) * v, state


def call_rwkv6(f, q, k, v, g, u, state):
    q, k, v, g = heads_first(q, k, v, g)
    y, state = f(q, k, v, g, u, initial_state=state, output_final_state=True)
    return y.transpose(1, 2), state


def call_based(f, q, k, v):
    """Their normaliser has 1e-6 added, ours 1e-10: so both sums are asked for, unnormalised."""
    q, k, v = heads_first(q, k, v)
    total, weight = (f(q, k, x, use_norm=False) for x in (v, torch.ones_like(v[..., :1])))
    return (total / (weight + 1e-10)).transpose(1, 2)


def based(q, k, v):
    features = TaylorFeatures(q.shape[-1], order=2)
    return linear_attention(features(scaled(q)), features(k), v, normalize=True)[0]


def squared(q, k, v):
    """ReBased's kernel is the quadratic part of the same features."""
    features, linear_part = TaylorFeatures(q.shape[-1], order=2), 1 + q.shape[-1]
    q, k = (2**0.5 * features(x)[..., linear_part:] for x in (scaled(q), k))
    return linear_attention(q, k, v, normalize=True)[0]


def gsa(q, k, v, s, g, keys, values):
    state = SlotState(keys, values)
    return slot_attention(scaled(q), k, v, s=s, log_decay=g, state=state)


def call_gsa(f, q, k, v, s, g, keys, values):
    return f(q, k, v, s=s, g=g, initial_state=(keys, values), output_final_state=True)


def abc(q, k, v, s):
    """ABC's slots are softmax-weighted means of all tokens: decays of logcumsumexp."""
    z = s.logcumsumexp(1)
    g = torch.cat([z[:, :1], z[:, :-1]], 1) - z
    return slot_attention(scaled(q), k, v, s=(s - z).exp(), log_decay=g)[0]


def call_heads_first(f, **inputs):
    y = f(*heads_first(*inputs.values()))
    return (y[0] if isinstance(y, tuple) else y).transpose(1, 2)


def retention(q, k, v):
    rates = torch.arange(q.shape[2], dtype=q.dtype)
    return linear(q, k, v, torch.log1p(-torch.exp2(-5 - rates)).expand(q.shape[:3]))[0]


def log_linear(q, k, v, g, level):
    return log_linear_attention(q, k, v, log_decay=g, level_scale=level)[0]


def call_log_linear(f, q, k, v, g, level):
    return f(q, k, v, g=g, level_scales=level, scale=1.0)


SIMPLE = QKV | {"g": "decay BTH", "state": "BHKV"}

CASES = [
    Case(
        "linear attention",
        "fla.ops.linear_attn.naive:naive_recurrent_linear_attn",
        QKV | {"state": "BHKV"},
        lambda f, q, k, v, state: f(q, k, v, initial_state=state, output_final_state=True),
        lambda q, k, v, state: linear(q, k, v, state=state),
    ),
    Case(
        "linear attention, their chunks",
        "fla.ops.linear_attn.naive:naive_chunk_linear_attn",
        QKV,
        lambda f, q, k, v: f(q, k, v),
        lambda q, k, v: linear(q, k, v)[0],
        lengths=(64, 128),
    ),
    Case(
        "linear attention, normalised",
        "fla.ops.linear_attn.naive:naive_recurrent_linear_attn",
        {"q": "positive BTHK", "k": "positive BTHK", "v": "BTHV"}
        | {"memory": "positive BHKV", "sums": "positive BHK"},
        call_normalized,
        normalized,
        wrong={"mLSTM's bound": lambda **inputs: normalized(**inputs, normalize="bounded")},
    ),
    Case(
        "RetNet",
        "fla.ops.retention.naive:naive_retention",
        QKV,
        call_heads_first,
        retention,
        wrong={"no decay": lambda q, k, v: linear(q, k, v)[0]},
    ),
    Case(
        "GLA",
        "fla.ops.gla.naive:naive_recurrent_gla",
        QKV | {"g": "decay BTHK", "state": "BHKV"},
        lambda f, q, k, v, g, state: f(q, k, v, gk=g, initial_state=state, output_final_state=True),
        linear,
        wrong={
            "one decay per head": lambda q, k, v, g, state: linear(q, k, v, g[..., 0], state),
        },
    ),
    Case(
        "simple GLA (Mamba-2's core)",
        "fla.ops.simple_gla.naive:naive_recurrent_simple_gla",
        SIMPLE,
        lambda f, q, k, v, g, state: f(q, k, v, g=g, initial_state=state, output_final_state=True),
        linear,
        wrong={"decay after the write": decay_after_write},
    ),
    Case(
        "simple GLA, their chunks",
        "fla.ops.simple_gla.naive:naive_chunk_simple_gla",
        SIMPLE,
        lambda f, q, k, v, g, state: f(
            q, k, v, g=g, initial_state=state, output_final_state=True, chunk_size=16
        ),
        linear,
    ),
    Case(
        "simple GLA, their matrix",
        "fla.ops.simple_gla.naive:naive_parallel_simple_gla",
        QKV | {"g": "decay BTH"},
        lambda f, q, k, v, g: f(q, k, v, g)[0],
        lambda q, k, v, g: linear(q, k, v, g)[0],
    ),
    Case(
        "HGRN",
        "fla.ops.hgrn.naive:naive_recurrent_hgrn",
        {"x": "BTK", "g": "decay BTK", "state": "BK"},
        lambda f, x, g, state: f(x, g, initial_state=state, output_final_state=True),
        lambda x, g, state: linear_scan(g.exp(), x, state=state),
    ),
    Case(
        "RWKV-6",
        "fla.ops.rwkv6.recurrent_naive:naive_recurrent_rwkv6",
        QKV | {"g": "decay BTHK", "u": "HK", "state": "BHKV"},
        call_rwkv6,
        rwkv6,
        wrong={"read after the write": lambda u, **inputs: linear(**inputs)},
    ),
    Case(
        "Based",
        "fla.ops.based.naive:naive_parallel_based",
        QKV,
        call_based,
        based,
        wrong={"ReBased": squared},
    ),
    Case(
        "ReBased",
        "fla.ops.rebased.naive:naive_parallel_rebased",
        QKV,
        call_based,
        squared,
        wrong={"Based": based},
    ),
    Case(
        "GSA",
        "fla.ops.gsa.naive:naive_recurrent_gsa",
        QKV | {"s": "BTHM", "g": "decay BTHM", "keys": "BHKM", "values": "BHMV"},
        call_gsa,
        gsa,
    ),
    Case(
        "ABC",
        "fla.ops.abc.naive:naive_cumsum_abc",
        QKV | {"s": "BTHM"},
        call_heads_first,
        abc,
    ),
    Case(
        "log-linear attention",
        "fla.ops.log_linear_attn.naive:naive_log_linear_attn",
        QKV | {"g": "decay BTH", "level": "BTHL"},
        call_log_linear,
        log_linear,
        lengths=(37, 64),
    ),
]
