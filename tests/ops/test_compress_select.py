import pytest
import torch
from laws import assert_near

from stepscan.ops.compress_select import compress, compress_each, expand, last_inputs, select

B, T, G, P = 3, 11, 2, 3


def groups(selected, resets):
    """The tokens of each group and whether a reset lies before them, in plain Python."""
    for b in range(B):
        for g in range(G):
            tokens, starts, reset = [], [], False
            for t in range(T):
                reset = reset or bool(resets[b, t])
                if selected[b, t, g]:
                    tokens.append(t)
                    starts.append(reset)
                    reset = False
            yield b, g, tokens, starts, reset


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_group_is_a_sequence_of_its_own(share):
    selected, resets = torch.rand(B, T, G) < share, torch.rand(B, T) < 0.3
    x, y = torch.randn(B, T, 5).double(), torch.randn(B, T, G, 5).double()
    past = torch.randn(B, G, P, 5).double()
    found = select(selected, resets)
    longest = 0
    tails = last_inputs(past, compress(x, found), found)
    for b, g, tokens, starts, gone in groups(selected, resets):
        n = len(tokens)
        longest = max(longest, n)
        assert found.token[b, g, :n].tolist() == tokens
        assert found.used[b, g].tolist() == [i < n for i in range(found.used.shape[2])]
        assert found.resets[b, g, :n].tolist() == starts
        assert not found.resets[b, g, n:].any()
        assert bool(found.gone[b, g]) == gone
        assert torch.equal(compress(x, found)[b, g, :n], x[b, tokens])
        assert torch.equal(compress_each(y, found)[b, g, :n], y[b, tokens, g])
        tail = [*past[b, g]]
        for t, start in zip(tokens, starts, strict=True):
            tail = [torch.zeros(5).double()] * P if start else tail
            tail = [*tail[1:], x[b, t]]
        tail = [torch.zeros(5).double()] * P if gone else tail
        assert_near(tails[b, g], torch.stack(tail), what=f"tail {b} {g}")
    assert found.token.shape[2] == longest
    back = expand(compress_each(y, found), found, T)
    assert_near(back, (y * selected[..., None]).sum(2), what="expanded")


def test_gradients_reach_selected_tokens_only():
    selected = torch.rand(B, T, G) < 0.5
    x = torch.randn(B, T, 4).double().requires_grad_()
    expand(compress(x, select(selected)), select(selected), T).sum().backward()
    assert torch.equal(x.grad, selected.sum(2)[..., None].double().expand_as(x))
