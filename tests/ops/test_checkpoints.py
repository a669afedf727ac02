import pytest
import torch
from laws import assert_near

from stepscan.ops.checkpoints import checkpoints
from stepscan.ops.delta_rule import delta_rule
from stepscan.ops.positions import positions

B, T, H, K, V = 3, 23, 2, 3, 4


@pytest.mark.parametrize("length", [1, 4, 7, 30])
@pytest.mark.parametrize("restart", [False, True])
def test_equals_a_loop_over_the_tokens(length, restart):
    k = torch.nn.functional.normalize(torch.randn(B, T, H, K).double(), dim=-1)
    inputs = {
        "q": torch.randn(B, T, H, K).double(),
        "k": k,
        "v": torch.randn(B, T, H, V).double(),
        "beta": torch.rand(B, T, H).double(),
        "log_decay": -torch.rand(B, T, H).double(),
    }
    resets, before = torch.rand(B, T) < 0.15, torch.tensor([0, 2, 9])
    state = torch.randn(B, H, K, V).double()
    place = positions(before, resets)
    y, last, found = checkpoints(
        delta_rule, inputs, place=place, length=length, state=state, resets=resets, restart=restart
    )
    for b in range(B):
        S, want, kept = state[b : b + 1], [], []
        for t in range(T):
            if restart and t and place[b, t] % length == 0:
                S = torch.zeros_like(S)
            one = {name: x[b : b + 1, t : t + 1] for name, x in inputs.items()}
            y_t, S = delta_rule(**one, state=S, resets=resets[b : b + 1, t : t + 1])
            want.append(y_t)
            if (place[b, t] + 1) % length == 0:
                kept.append((t, S[0]))
        assert_near(y[b : b + 1], torch.cat(want, 1), what="y")
        ended = bool(restart and (place[b, -1] + 1) % length == 0)
        assert_near(last[b : b + 1], 0 * S if ended else S, what="last")
        assert found.token[b][found.whole[b]].tolist() == [t for t, _ in kept]
        if kept:
            got = found.states[b][found.whole[b]]
            assert_near(got, torch.stack([S for _, S in kept]), what="checkpoints")


def test_no_tokens_leave_all_as_it_was():
    inputs = {"q": torch.zeros(B, 0, H, K), "k": torch.zeros(B, 0, H, K)}
    inputs |= {"v": torch.zeros(B, 0, H, V), "beta": torch.zeros(B, 0, H)}
    state, none = torch.randn(B, H, K, V), torch.zeros(B, 0, dtype=torch.bool)
    y, last, found = checkpoints(
        delta_rule, inputs, place=none.long(), length=4, state=state, resets=none
    )
    assert y.shape == (B, 0, H, V)
    assert torch.equal(last, state)
    assert found.states.shape[1] == 0
