"""The matrices behind bidirectional mixers."""

import pytest
import torch

from stepscan.analyze.matrix_mixer import (
    as_heads,
    gradient_path,
    lag_operators,
    materialize,
    min_heads,
    operator_span,
)
from stepscan.mixers import MIXERS

WIDTH, T, STATES = 16, 20, 3
QUASISEPARABLE = {"combine": "quasiseparable", "states": STATES}
every_matrix = pytest.mark.parametrize(
    ("name", "options"),
    [
        ("hydra", QUASISEPARABLE),
        ("hydra", {"combine": "add", "states": STATES}),
        ("bi_gla", {"key_ratio": 3 / 8}),
    ],
    ids=lambda o: o if isinstance(o, str) else "-".join(map(str, o.values())),
)


def built(name, options):
    return MIXERS[name](**options).build(WIDTH).double(), torch.randn(2, T, WIDTH).double()


def off_diagonal_ranks(matrix):
    """The greatest rank of a block strictly below the diagonal, and of one above."""
    below = max(int(torch.linalg.matrix_rank(matrix[..., t:, :t]).max()) for t in range(1, T))
    above = max(int(torch.linalg.matrix_rank(matrix[..., :t, t:]).max()) for t in range(1, T))
    return below, above


@every_matrix
def test_the_matrix_is_the_mixer(name, options):
    mixer, x = built(name, options)
    values, _, gate, _ = mixer.select(x)
    y = torch.einsum("bhts,bshp->bthp", materialize(mixer, x), values)
    torch.testing.assert_close(mixer.finish(y, gate), mixer(x)[0], atol=1e-10, rtol=0)


@every_matrix
def test_what_is_off_the_diagonal_passes_through_the_state(name, options):
    """The rank of blocks off the diagonal is bounded by the size of a key."""
    mixer, x = built(name, options)
    assert off_diagonal_ranks(materialize(mixer, x)) == (STATES, STATES)


def test_only_the_shifted_passes_leave_the_diagonal_free():
    """With both passes shifted, what a token makes of itself is its own number and no more."""
    mixer, x = built("hydra", QUASISEPARABLE)
    _, selection, *_ = mixer.select(x)
    diagonal = materialize(mixer, x).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(diagonal, selection.diagonal.mT)
    mixer, x = built("hydra", QUASISEPARABLE | {"combine": "add"})
    _, selection, *_ = mixer.select(x)
    diagonal = materialize(mixer, x).diagonal(dim1=-2, dim2=-1)
    assert (diagonal - selection.diagonal.mT).abs().min() > 0


@pytest.mark.plain
@pytest.mark.parametrize("name", ["hydra", "mamba"])
def test_what_is_no_matrix_says_so(name):
    options = {"combine": "multiply"} if name == "hydra" else {}
    mixer, x = built(name, options)
    with pytest.raises(ValueError, match="want a mixer that is one matrix per head"):
        materialize(mixer, x)


def random_ssm(states, width=5, radius=0.9):
    """x -> y of h = A h + B x, y = C h, with its step."""
    A = torch.randn(states, states).double()
    A = radius * A / torch.linalg.eigvals(A).abs().max()
    B, C = torch.randn(states, width).double(), torch.randn(width, states).double()

    def run(x):
        h, ys = x.new_zeros(len(x), states), []
        for x_t in x.unbind(1):
            h = h @ A.mT + x_t @ B.mT
            ys.append(h @ C.mT)
        return torch.stack(ys, 1)

    return run


@pytest.mark.parametrize("states", [2, 4, 8])
def test_lags_of_an_ssm_span_as_many_directions_as_it_has_states(states):
    operators = lag_operators(random_ssm(states), 5, 30)
    assert min_heads(operators) == states
    assert min_heads(operators[: states - 1]) == states - 1


@pytest.mark.parametrize("states", [2, 4, 8])
def test_so_many_heads_are_the_ssm(states):
    """Scores by distance, one matrix a head: attention's sum equals the recurrence."""
    run, L = random_ssm(states), 30
    scores, values = as_heads(lag_operators(run, 5, L), states)
    x = torch.randn(2, L, 5).double()
    lag = torch.arange(L)[:, None] - torch.arange(L)
    attention = torch.where(lag[..., None] >= 0, scores[lag.clamp(min=0)], 0.0)
    y = torch.einsum("tsh,hoi,bsi->bto", attention, values, x)
    torch.testing.assert_close(y, run(x), atol=1e-10, rtol=0)


@pytest.mark.parametrize("states", [2, 4, 8])
def test_one_head_less_cannot(states):
    """The best of fits that start anywhere comes down to the last singular value, never below."""
    operators = lag_operators(random_ssm(states), 5, 30)
    bound, flat = operator_span(operators)[states - 1], operators.flatten(1)
    errors = []
    for _ in range(5):
        values = torch.randn(states - 1, 25).double()
        for _ in range(1000):  # scores and matrices in turns, each the best for the other
            scores = torch.linalg.lstsq(values.mT, flat.mT).solution.mT
            values = torch.linalg.lstsq(scores, flat).solution
        errors.append((scores @ values - flat).norm())
    assert min(errors) >= bound * (1 - 1e-9)
    assert min(errors) <= bound * 1.05
    assert bound > 1e-6


def test_attention_hears_all_distances_alike_and_a_stable_ssm_does_not():
    """A key planted at each distance in turn, and the slope of an SSM's decay."""
    mixer = MIXERS["attention"](heads=1, rotary=False).build(WIDTH).double()
    with torch.no_grad():
        for part in mixer.qkv.weight.split(WIDTH):
            part.copy_(torch.eye(WIDTH))
    loud = []
    for distance in range(2, 18, 3):
        x = 0.1 * torch.randn(1, T, WIDTH).double()
        x[:, -1, 0], x[:, -1 - distance, 0] = 4.0, 6.0
        loud.append(gradient_path(lambda x: mixer(x)[0], x)[0, distance].item())
    assert max(loud) < 1.2 * min(loud)
    path = gradient_path(random_ssm(4, radius=0.7), torch.randn(1, 60, 5).double())[0]
    slope = (path[50:].log().mean() - path[20:30].log().mean()) / 30
    assert slope.item() == pytest.approx(torch.tensor(0.7).log().item(), abs=0.06)


@pytest.mark.plain
def test_impossible_heads_are_refused():
    with pytest.raises(ValueError, match="heads from 1 to 4"):
        as_heads(torch.randn(9, 2, 2), 5)
