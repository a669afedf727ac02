"""Softmax attention and its relatives, beside fla's naive functions. They carry no state."""

from linear_cases import QKV, scaled
from published import Case

from stepscan.ops.attention import attention
from stepscan.ops.forgetting_attention import forgetting_attention
from stepscan.ops.path_attention import path_attention

GROUPED = {"q": "BTRK", "k": "BTHK", "v": "BTHV"}


def attend(q, k, v, **options):
    return attention(scaled(q), k, v, **options)[0]


def forget(q, k, v, g):
    return forgetting_attention(scaled(q), k, v, log_decay=g)[0]


def path(q, k, v, w, beta, g):
    """They scale the decays with the scores; ours are given as they act."""
    g = g * q.shape[-1] ** -0.5
    return path_attention(scaled(q), k, v, w=w, beta=beta, log_decay=g)[0]


def call_path(f, q, k, v, w, beta, g):
    return f(q, k, v, w, beta, g, scale=q.shape[-1] ** -0.5, chunk_size=16)


def turned_by_itself(q, k, v, w, beta, g):
    """Each key turned by its own token, too."""
    own = k - (beta * (w * k).sum(-1))[..., None] * w
    return path(q, own, v, w, beta, g)


CASES = [
    Case(
        "attention, grouped heads",
        "fla.ops.attn.naive:naive_parallel_attn",
        GROUPED,
        lambda f, q, k, v: f(q, k, v)[0],
        attend,
        wrong={"heads in another order": lambda q, k, v: attend(q, k.flip(2), v.flip(2))},
    ),
    Case(
        "attention, window and sinks",
        "fla.ops.attn.naive:naive_parallel_attn",
        GROUPED | {"sink": "R"},
        lambda f, q, k, v, sink: f(q, k, v, window_size=9, sink_bias=sink)[0],
        lambda q, k, v, sink: attend(q, k, v, window=9, sink=sink),
        wrong={"a window of 10": lambda q, k, v, sink: attend(q, k, v, window=10, sink=sink)},
    ),
    Case(
        "FoX",
        "fla.ops.forgetting_attn.naive:naive_forgetting_attn",
        QKV | {"g": "decay BTH"},
        lambda f, q, k, v, g: f(q, k, v, g),
        forget,
        wrong={"own decay counted": lambda q, k, v, g: forget(q, k, v, g.roll(-1, 1))},
    ),
    Case(
        "PaTH-FoX",
        "fla.ops.path_attn.naive:naive_path_attn",
        QKV | {"w": "unit BTHK", "beta": "turn BTH", "g": "decay BTH"},
        call_path,
        path,
        wrong={"keys turned by their own tokens": turned_by_itself},
        lengths=(1, 37, 64),
    ),
]
