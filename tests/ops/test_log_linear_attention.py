import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law

from stepscan.ops.linear_attention import linear_attention
from stepscan.ops.log_linear_attention import FORMS, LogLinearState, log_linear_attention

B, H, K, V = 2, 2, 3, 5
NAMES = ("q", "k", "v", "level_scale", "log_decay")
REGIMES = {
    "mild": lambda u: -u,
    "zero": lambda u: 0 * u,
    "strong": lambda u: -20 * u,
    "extreme": lambda u: -(10 ** (8 * u - 4)),  # -1e-4 ... -1e4
}
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
few_or_many = pytest.mark.parametrize("levels", [1, 3, 8])


def make(T=70, levels=4, regime="mild", dtype=torch.float64):
    q, k, v = (torch.randn(B, T, H, d, dtype=dtype) for d in (K, K, V))
    scale = torch.rand(B, T, H, levels + 1, dtype=dtype)
    g = REGIMES[regime](torch.rand(B, T, H, dtype=dtype))
    past = (x[:, :11] for x in (torch.randn(B, 11, H, K), torch.randn(B, 11, H, V)))
    k_0, v_0 = (x.to(dtype) for x in past)
    weights = torch.zeros(B, 11, H, levels + 1, dtype=dtype)
    starts = torch.zeros(B, 11, dtype=torch.bool)
    starts[0, 4] = True  # rows stand at different positions
    _, state = log_linear_attention(k_0, k_0, v_0, level_scale=weights, resets=starts)
    return (q, k, v, scale, g), state, torch.rand(B, T) < 0.05


def step(form):
    def run(inputs, state, resets):
        named = dict(zip(NAMES, inputs, strict=True))
        return log_linear_attention(**named, state=state, resets=resets, form=form)

    return run


@few_or_many
@pytest.mark.parametrize("T", [0, 1, 33, 64, 65, 130])
@every_dtype
def test_forms_law(levels, T, dtype):
    inputs, state, resets = make(T, levels, dtype=dtype)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)


@pytest.mark.parametrize("regime", REGIMES)
@every_dtype
def test_forms_law_in_every_regime_of_decay(regime, dtype):
    inputs, state, resets = make(regime=regime, dtype=dtype)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)


@every_form
def test_gradcheck(form):
    inputs, state, resets = make(9, 3)
    leaves = [x.requires_grad_() for x in (*inputs, state.memory)]
    run = lambda *x: step(form)(x[:5], LogLinearState(x[5], state.length), resets)[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@every_form
@few_or_many
@pytest.mark.parametrize("cuts", [[0], [1, 70], [64], [3, 3, 40], list(range(1, 70))], ids=str)
def test_split_law(form, levels, cuts):
    inputs, state, resets = make(levels=levels)
    split_law(step(form), inputs, state, cuts, resets=resets)


@every_form
def test_reset_causal_and_rows_laws(form):
    inputs, state, resets = make()
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 40)


@every_form
def test_one_weight_for_all_levels_is_linear_attention(form):
    (q, k, v, scale, g), _, resets = make()
    y, state = step(form)((q, k, v, torch.ones_like(scale), g), None, resets)
    want, memory = linear_attention(q, k, v, log_decay=g, resets=resets)
    assert_near((y, state.memory.sum(1)), (want, memory), what="linear attention")


@every_form
@pytest.mark.parametrize("T", [1, 2, 31, 32, 33])
def test_blocks_are_those_of_a_fenwick_tree(form, T):
    """Each prefix cut by the set bits of its length, the largest block first."""
    (q, k, v, scale, g), *_ = make(T, levels=7)
    y, _ = step(form)((q, k, v, scale, g), None, None)
    for t in range(T):
        want = scale[:, t, :, 0, None] * (q[:, t] * k[:, t]).sum(-1, keepdim=True) * v[:, t]
        begin = 0
        for bit in reversed(range(7)):
            if t >> bit & 1:
                for j in range(begin, begin + 2**bit):
                    decay = g[:, j + 1 : t + 1].sum(1).exp()
                    score = (q[:, t] * k[:, j]).sum(-1) * decay * scale[:, t, :, bit + 1]
                    want = want + score[..., None] * v[:, j]
                begin += 2**bit
        assert begin == t
        assert_near(y[:, t], want, what=f"token {t}")


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (q, k, v, scale, g), state, _ = make()
    with pytest.raises(ValueError, match=r"M at least 2.*level_scale \(2, 70, 2, 1\)"):
        log_linear_attention(q, k, v, level_scale=scale[..., :1])
    with pytest.raises(ValueError, match=r"state: want \(2, 4, 2, 3, 5\)"):
        log_linear_attention(q, k, v, level_scale=scale, state=state._replace(memory=k))
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        log_linear_attention(q, k, v, level_scale=scale, log_decay=g, form="chunk")
