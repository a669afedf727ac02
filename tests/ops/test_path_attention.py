import pytest
import torch
from laws import assert_near, causal_law, forms_law, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan.ops.fading_cache import FadingCache
from stepscan.ops.forgetting_attention import forgetting_attention
from stepscan.ops.path_attention import FORMS, path_attention

B, H, K, V = 2, 2, 3, 5
NAMES = ("q", "k", "v", "w", "beta", "log_decay")
STRENGTHS = {  # of a turn, from uniform numbers
    "any": lambda u: 2 * u,
    "none": lambda u: 0 * u,
    "projections": torch.ones_like,
    "reflections": lambda u: 2 * torch.ones_like(u),
}
every_form = pytest.mark.parametrize("form", FORMS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def make(T=70, strength="any", decay=1.0, dtype=torch.float64):
    q, k, v, w = (torch.randn(B, T, H, d, dtype=dtype) for d in (K, K, V, K))
    beta = STRENGTHS[strength](torch.rand(B, T, H, dtype=dtype))
    g = -decay * torch.rand(B, T, H, dtype=dtype)
    length = torch.tensor([3, 1])
    unused = (torch.arange(3) < 3 - length[:, None])[..., None]
    keys, values = torch.randn(B, 3, H, K, dtype=dtype), torch.randn(B, 3, H, V, dtype=dtype)
    past = (x.masked_fill(unused[..., None], 0.0) for x in (keys, values))
    since = -torch.rand(B, 3, H, dtype=dtype).masked_fill(unused, 0.0)
    inputs = q, k, v, F.normalize(w, dim=-1), beta, g
    return inputs, FadingCache(*past, since, length), torch.rand(B, T) < 0.05


def step(form):
    def run(inputs, state, resets):
        named = dict(zip(NAMES, inputs, strict=True))
        return path_attention(**named, state=state, resets=resets, form=form)

    return run


@pytest.mark.parametrize("T", [0, 1, 63, 64, 65, 130])
@every_dtype
def test_forms_law(T, dtype):
    inputs, state, resets = make(T, dtype=dtype)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("decay", [0.0, 1e3])
@every_dtype
def test_forms_law_at_the_ends_of_the_range(strength, decay, dtype):
    inputs, state, resets = make(strength=strength, decay=decay, dtype=dtype)
    forms_law(step("chunked"), step("recurrent"), inputs, state, resets=resets)


@every_form
def test_gradcheck(form):
    inputs, state, resets = make(9)
    leaves = [x.requires_grad_() for x in (*inputs, *state[:3])]
    run = lambda *x: step(form)(x[:6], FadingCache(*x[6:], state.length), resets)[0]  # noqa: E731
    assert torch.autograd.gradcheck(run, leaves, fast_mode=True)


@every_form
@pytest.mark.parametrize("cuts", [[0], [1, 70], [64], [3, 3, 40], list(range(1, 70))], ids=str)
def test_split_law(form, cuts):
    inputs, state, resets = make()
    split_law(step(form), inputs, state, cuts, resets=resets)


@every_form
def test_reset_causal_and_rows_laws(form):
    inputs, state, resets = make()
    reset_law(step(form), inputs, state, resets)
    rows_law(step(form), inputs, state, resets=resets)
    causal_law(step(form), inputs, 40)


@every_form
def test_the_score_is_the_product_of_the_matrices_in_between(form):
    """The equation of the paper, matrix by matrix, for one head."""
    q, k, v, w, beta, g = (x[:1, :9, :1] for x in make()[0])
    turns = [torch.eye(K, dtype=q.dtype) - b * torch.outer(u, u) for b, u in
             zip(beta[0, :, 0], w[0, :, 0], strict=True)]  # fmt: skip
    ys = []
    for t in range(9):
        scores, between = [], torch.eye(K, dtype=q.dtype)
        for j in range(t, -1, -1):
            scores.append(q[0, t, 0] @ between @ k[0, j, 0] + g[0, j + 1 : t + 1, 0].sum())
            between = between @ turns[j]
        ys.append(torch.stack(scores[::-1]).softmax(0) @ v[0, : t + 1, 0])
    y, _ = step(form)((q, k, v, w, beta, g), None, None)
    assert_near(y[0, :, 0], torch.stack(ys), what="the paper's equation")


@every_form
def test_without_turns_it_is_forgetting_attention(form):
    (q, k, v, w, _, g), state, resets = make()
    still = torch.zeros_like(g)
    got = step(form)((q, k, v, w, still, g), state, resets)
    want = forgetting_attention(q, k, v, log_decay=g, state=FadingCache(*state), resets=resets)
    assert_near(got, want, what="forgetting attention")


@every_form
def test_a_reflection_keeps_lengths_and_a_projection_takes_its_direction_away(form):
    (q, k, v, w, beta, g), _, _ = make(2)
    for strength in (1.0, 2.0):
        _, state = step(form)((q, k, v, w, torch.full_like(beta, strength), g), None, None)
        turned = state.keys[:, 0]
        if strength == 1.0:
            assert_near((turned * w[:, 1]).sum(-1), torch.zeros(B, H).double(), what="along w")
        else:
            assert_near(turned.norm(dim=-1), k[:, 0].norm(dim=-1), what="length")


def test_no_decay_is_the_same_as_zeros():
    (q, k, v, w, beta, g), _, resets = make()
    y, _ = path_attention(q, k, v, w=w, beta=beta, resets=resets)
    want, _ = path_attention(q, k, v, w=w, beta=beta, log_decay=0 * g, resets=resets)
    assert torch.equal(y, want)


@pytest.mark.plain
def test_errors_say_what_to_fix():
    (q, k, v, w, beta, g), state, _ = make()
    with pytest.raises(ValueError, match=r"beta \(2, 70\)"):
        path_attention(q, k, v, w=w, beta=beta[..., 0])
    short = state._replace(length=state.length[:1])
    with pytest.raises(ValueError, match="want length int64"):
        path_attention(q, k, v, w=w, beta=beta, log_decay=g, state=short)
    with pytest.raises(ValueError, match="Did you mean 'chunked'"):
        path_attention(q, k, v, w=w, beta=beta, form="chunk")
