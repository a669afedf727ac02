"""Memories that erase what they overwrite, beside functions of fla, transformers and xLSTM."""

import torch
from linear_cases import QKV, heads_first, scaled
from published import Case
from torch.nn import functional as F

from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.dplr import dplr
from stepscan.ops.linear_attention import ScaledMemory, linear_attention
from stepscan.ops.memory_network import Rule
from stepscan.ops.ridge_regression import ridge_regression
from stepscan.ops.test_time_scan import init_state, test_time_scan

DELTA = QKV | {"k": "unit BTHK", "beta": "rate BTH"}
GATED = DELTA | {"g": "decay BTH", "state": "BHKV"}


def delta(q, k, v, beta, g=None, state=None, **options):
    return delta_rule(scaled(q), k, v, beta=beta, log_decay=g, state=state, **options)


def call(f, state, **inputs):
    return f(**inputs, initial_state=state, output_final_state=True)


def call_heads_first(f, state=None, **inputs):
    inputs = dict(zip(inputs, heads_first(*inputs.values()), strict=True))
    state = {} if state is None else {"initial_state": state, "output_final_state": True}
    y, state = f(**inputs, **state)
    return y.transpose(1, 2), state


def undecayed_erase(q, k, v, beta, g, state):
    """DPLR's order: what is erased is read before the decay."""
    a, b = -k, beta[..., None] * k
    return dplr(scaled(q), b, v, a=a, b=b, log_decay=g, undecayed=True, state=state)


def comba(q, k, p, v, beta, g, state):
    return delta(q, k, v, beta, g, state, erase=p)


def published_comba(q, k, p, v, beta, g, state):
    """The paper erases what was there before the decay: as their chunks do, not their steps."""
    b = beta[..., None] * k
    return dplr(scaled(q), b, v, a=-p, b=b, log_decay=g, undecayed=True, state=state)


def gdn2(q, k, v, g, b, w, state):
    """A write of its own strength per value channel, an erasure of its own per key channel."""
    one = torch.ones_like(k[..., 0])
    return delta_rule(scaled(q), k, w * v, beta=one, log_decay=g, erase=b * k, state=state)


def call_product(f, q, k, v, beta, g, state):
    """Their steps of a token follow each other in time; the scale has to be given."""
    k, v, beta = (x.flatten(1, 2) for x in (k, v, beta))
    options = {"scale": q.shape[-1] ** -0.5, "initial_state": state, "output_final_state": True}
    return f(q, k, v, g, beta, num_householder=2, **options)


def turned(q, k, v, beta, g, state):
    return delta(q, k.flip(2), v.flip(2), beta.flip(2), g, state)


def rwkv7(q, k, v, alpha, beta, g, state):
    return dplr(scaled(q), k, v, a=alpha, b=beta, log_decay=g, undecayed=True, state=state)


def decayed_read(q, k, v, alpha, beta, g, state):
    return dplr(scaled(q), k, v, a=alpha, b=beta, log_decay=g, state=state)


def iplr(q, k, v, alpha, beta, state):
    return dplr(scaled(q), k, v, a=alpha, b=beta, state=state)


def call_dplr(f, g=None, **inputs):
    return call_heads_first(f, **inputs, **({} if g is None else {"gk": g}))


def mesa(q, k, v, beta, g, ridge, keys, values):
    """Their two memories are ours side by side; neither scales q."""
    state = torch.cat([keys @ keys.mT, values], -1)  # a memory of keys is a sum of squares
    y, last = ridge_regression(q, k, v, ridge=ridge, weight=beta, log_decay=g, state=state)
    return y, *last.split(k.shape[-1], -1)


def call_mesa(f, q, k, v, beta, g, ridge, keys, values):
    return f(q, k, v, g, ridge, beta, h_kk_init=keys @ keys.mT, h_kv_init=values)


def ttt(q, k, v, weight, bias, eta, memory, offset):
    """Their learning rate is that of the token that reads: our `scale`, with a rate of 1."""
    first = torch.cat([memory, offset], -2)  # the bias is one more input
    one = torch.ones_like(eta[..., 0])
    fresh, rule = (torch.zeros_like(first[0]),), Rule(chunk=8)
    state = init_state(len(q), fresh, rule, keys=q.shape[-1], momentum=False)
    state = state._replace(start=first.flatten(-2), now=first.flatten(-2))
    y, last = test_time_scan(
        q, k, v, init=fresh, rule=rule, rate=one, scale=eta[..., 0], norm=(weight, bias),
        state=state,
    )  # fmt: skip
    return y, last.start.unflatten(-1, first.shape[-2:])


def call_ttt(f, q, k, v, weight, bias, eta, memory, offset):
    """They write into q, and add the norm to what is read: the paper adds it to the query."""
    y, *last = f(
        q.clone(), k, v, weight, bias, eta, scale=1.0, mini_batch_size=8, output_final_state=True,
        initial_state=memory, initial_state_bias=offset,
    )  # fmt: skip
    return y, torch.cat(last, -2)


def mlstm(q, k, v, i, f, memory, sums, scale):
    """Their q is scaled inside, too; their m is our log_scale."""
    state = ScaledMemory(torch.cat([memory, sums[..., None]], -1), scale)
    y, (last, scale) = linear_attention(
        scaled(q), k, v, log_decay=F.logsigmoid(f), log_input=i, normalize="bounded", state=state
    )
    return y, last[..., :-1], last[..., -1], scale


def call_mlstm(run, q, k, v, i, f, memory, sums, scale):
    y, (memory, sums, scale) = run(
        *heads_first(q, k, v, i, f), memory, sums, scale[..., None], return_last_states=True
    )
    return y.transpose(1, 2), memory, sums, scale[..., 0]


CASES = [
    Case(
        "DeltaNet",
        "fla.ops.delta_rule.naive:delta_rule_recurrence",
        DELTA | {"state": "BHKV"},
        call_heads_first,
        lambda state, **inputs: delta(**inputs, state=state),
        wrong={
            "nothing erased": lambda q, k, v, beta, state: linear_attention(
                scaled(q), beta[..., None] * k, v, state=state
            )
        },
    ),
    Case(
        "DeltaNet, their chunks",
        "fla.ops.delta_rule.naive:delta_rule_chunkwise",
        DELTA,
        call_heads_first,
        delta,
        lengths=(64, 96),
        differentiable=False,
    ),
    Case(
        "DeltaNet, their matrix",
        "fla.ops.delta_rule.naive:delta_rule_parallel",
        DELTA,
        lambda f, **inputs: call_heads_first(f, **inputs)[0],
        lambda **inputs: delta(**inputs)[0],
        lengths=(128, 256),
        differentiable=False,
    ),
    Case(
        "Gated DeltaNet",
        "fla.ops.gated_delta_rule.naive:naive_recurrent_gated_delta_rule",
        GATED,
        call,
        delta,
        wrong={"erased before the decay": undecayed_erase},
    ),
    Case(
        "Gated DeltaNet, their chunks",
        "fla.ops.gated_delta_rule.naive:naive_chunk_gated_delta_rule",
        GATED,
        call,
        delta,
    ),
    Case(
        "Gated DeltaNet, of transformers",
        "transformers.models.qwen3_next.modeling_qwen3_next:torch_recurrent_gated_delta_rule",
        GATED,
        lambda f, q, k, v, beta, g, state: f(
            q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True
        ),
        delta,
    ),
    Case(
        "KDA",
        "fla.ops.kda.naive:naive_recurrent_kda",
        GATED | {"g": "decay BTHK"},
        call,
        delta,
        wrong={"erased before the decay": undecayed_erase},
    ),
    Case(
        "KDA, their chunks",
        "fla.ops.kda.naive:naive_chunk_kda",
        GATED | {"g": "decay BTHK"},
        lambda f, **inputs: call(f, **inputs, chunk_size=32),
        delta,
        lengths=(32, 96),
    ),
    Case(
        "GDN-2",
        "fla.ops.gdn2.naive:naive_recurrent_gdn2",
        QKV
        | {"k": "unit BTHK", "g": "decay BTHK", "b": "rate BTHK", "w": "rate BTHV"}
        | {"state": "BHKV"},
        call,
        gdn2,
    ),
    Case(
        "Comba, their steps",
        "fla.ops.comba.naive:naive_recurrent_comba",
        GATED | {"p": "unit BTHK"},
        call,
        comba,
        wrong={
            "erased at k": lambda p, **inputs: delta(**inputs),
            "erased before the decay": published_comba,
        },
    ),
    Case(
        "Comba, their chunks",
        "fla.ops.comba.naive:naive_chunk_comba",
        GATED | {"p": "unit BTHK"},
        call,
        published_comba,
        wrong={"erased after the decay": comba},
    ),
    Case(
        "Gated DeltaProduct",
        "fla.ops.gated_delta_product.naive:naive_recurrent_gated_delta_product",
        GATED | {"k": "unit BTNHK", "v": "BTNHV", "beta": "turn BTNH"},
        call_product,
        delta,
        wrong={"steps in the other order": turned},
    ),
    Case(
        "DPLR (RWKV-7's core)",
        "fla.ops.generalized_delta_rule.dplr.naive:dplr_recurrence",
        QKV | {"alpha": "unit BTHK", "beta": "unit BTHK", "g": "decay BTHK", "state": "BHKV"},
        call_dplr,
        rwkv7,
        wrong={"read after the decay": decayed_read},
    ),
    Case(
        "DPLR, their chunks",
        "fla.ops.generalized_delta_rule.dplr.naive:dplr_chunkwise",
        QKV | {"alpha": "unit BTHK", "beta": "unit BTHK", "g": "decay BTHK", "state": "BHKV"},
        call_dplr,
        rwkv7,
        lengths=(32, 96),
        differentiable=False,
    ),
    Case(
        "IPLR",
        "fla.ops.generalized_delta_rule.iplr.naive:iplr_recurrence",
        QKV | {"alpha": "unit BTHK", "beta": "unit BTHK", "state": "BHKV"},
        call_dplr,
        iplr,
    ),
    Case(
        "MesaNet",
        "fla.ops.mesa_net.naive:naive_mesa_net_exact",
        {"q": "BTHK", "k": "unit BTHK", "v": "BTHK", "beta": "rate BTH", "g": "decay BTH"}
        | {"ridge": "positive HK", "keys": "BHKK", "values": "BHKK"},
        call_mesa,
        mesa,
    ),
    Case(
        "TTT-Linear",
        "fla.ops.ttt.naive:chunk_ttt_linear_ref",
        {"q": "BTHK", "k": "BTHK", "v": "BTHK", "weight": "HK", "bias": "HK", "eta": "rate BTH1"}
        | {"memory": "BHKK", "offset": "BH1K"},
        call_ttt,
        ttt,
        edit=("o[i] = o_i + (", "o[i] = q_i + ("),
        lengths=(8, 64),
    ),
    Case(
        "mLSTM, of transformers",
        "transformers.models.xlstm.modeling_xlstm:mlstm_recurrent_sequence_native",
        QKV | {"i": "BTH", "f": "BTH", "memory": "BHKV", "sums": "BHK", "scale": "BH"},
        call_mlstm,
        mlstm,
    ),
]
