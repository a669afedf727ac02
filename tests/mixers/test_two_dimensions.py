"""Mixers that see two dimensions: their equations on a grid, and what they refuse."""

import pytest
import torch
from laws import assert_near, live_law, reset_law, rows_law, split_law
from torch.nn import functional as F

from stepscan import state as states
from stepscan.layers.bidirectional import both_ways
from stepscan.layers.grid import GridConv, as_grid, from_grid
from stepscan.layers.grid_positions import MDToeplitz, md_lrpe
from stepscan.mixers import MIXERS
from stepscan.ops.linear_attention import linear_attention

WIDTH, R, C = 16, 4, 5
GRIDS = [
    ("plstm", {}),
    ("plstm", {"mode": "D"}),
    ("bi_gla", {}),
    ("lightnet", {"causal": False}),
    ("lightnet", {"causal": False, "positions": "both"}),
]
every_grid = pytest.mark.parametrize(("name", "options"), GRIDS, ids=str)


def built(name, rows=R, columns=C, **options):
    mixer = MIXERS[name](rows=rows, columns=columns, **options).build(WIDTH).double()
    with torch.no_grad():  # published zeros would leave gates that do not see the input
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return mixer, torch.randn(2, R * C, WIDTH).double()


def test_tokens_fold_into_whole_grids_and_back():
    x = torch.arange(2.0 * 24).view(2, 24, 1)
    grids = as_grid(x, 3, 4)
    assert grids.shape == (4, 3, 4, 1)
    assert torch.equal(grids[1].flatten(), x[0, 12:].flatten())
    assert torch.equal(from_grid(grids, 2), x)
    assert as_grid(x, None, 4).shape == (2, 6, 4, 1)
    with pytest.raises(ValueError, match="whole grids of 3 x 5 tokens, got 24"):
        as_grid(x, 3, 5)


def test_the_window_in_the_plane_is_the_convolution_of_torch():
    conv, x = GridConv(3, 3).double(), torch.randn(2, R, C, 3).double()
    want = torch.nn.Conv2d(3, 3, 3, padding=1, groups=3).double()
    want.load_state_dict({"weight": conv.weight[:, None], "bias": conv.bias})
    assert_near(conv(x), want(x.movedim(3, 1)).movedim(1, 3), what="conv")


@every_grid
def test_every_grid_of_a_stretch_is_a_sequence_of_its_own(name, options):
    mixer, x = built(name, **options)
    several, single = x.view(1, 2 * R * C, WIDTH), built(name, rows=None, **options)[0]
    single.load_state_dict(mixer.state_dict())
    y, state = mixer(several, mixer(x[:1])[1])
    assert_near(y.view_as(x), mixer(x)[0], what="grids in one stretch")
    assert_near(single(x)[0], mixer(x)[0], what="a stretch that is one grid")
    assert_near(state, mixer.init_state(1), what="no state goes on")
    assert not mixer.causal
    rows_law(lambda xs, s, r: mixer(*xs, s, r), (x,), None)


@every_grid
def test_every_node_sees_the_whole_grid(name, options):
    mixer, x = built(name, **options)
    J = torch.autograd.functional.jacobian(lambda x: mixer(x)[0][0], x[:1])[:, :, 0]
    assert (J.abs().sum((1, 3)) > 0).all()


@pytest.mark.plain
@every_grid
def test_gradients_live_and_the_grid_compiles_whole(name, options):
    mixer = MIXERS[name](rows=R, columns=C, **options).build(WIDTH)
    x = torch.randn(2, R * C, WIDTH)
    live_law(mixer, x)
    compiled = torch.compile(mixer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], mixer(x)[0])


@pytest.mark.parametrize("mode", ["P", "D"])
def test_plstm_reads_a_grid_from_four_corners_by_its_equations(mode):
    """Node by node, from each corner with gates of its own; gates by the words of the docstring."""
    mixer, x = built("plstm", mode=mode, heads=2)
    H, K = 2, 8
    nodes = x[:1].view(R, C, WIDTH)
    c = F.silu(mixer.conv(nodes[None])[0])
    q, k = (p.view(R, C, H, K) for p in mixer.qk(c).chunk(2, -1))
    v, q = mixer.value(nodes).view(R, C, H, K), q / K**0.5
    gates = mixer.gate(c)
    direct = gates[..., :H].sigmoid()
    own = gates[..., H:].view(R, C, -1, 4, H)
    mean = torch.zeros(R, C, H, K).double()
    for corner, (up, right) in enumerate([(1, 1), (-1, 1), (1, -1), (-1, -1)]):
        edges = {}
        for i in range(R)[::up]:
            for j in range(C)[::right]:
                g = own[i, j, :, corner]
                left, above = (
                    edges.get(e, torch.zeros(H, K, K).double()) for e in ((i, j, "l"), (i, j, "u"))
                )
                if mode == "P":
                    s, m, t, angle = (
                        g[0].sigmoid(),
                        g[1].sigmoid(),
                        (10 * g[2]).sigmoid(),
                        g[3].sigmoid(),
                    )
                    m_l = m_u = m
                    s_r, s_d = s * angle, s * (1 - angle)
                    t_rl = t_ru = t * angle
                    t_dl = t_du = t * (1 - angle)
                else:
                    s_r, s_d, m_l, m_u = g[:4].sigmoid()
                    t_rl, t_du, t_ru = (10 * g[4:]).sigmoid()
                    t_dl = torch.zeros(H).double()
                wide = lambda z: z[:, None, None]  # noqa: E731
                kv = k[i, j][:, :, None] * v[i, j][:, None]
                read = torch.einsum("hk,hkv->hv", q[i, j], wide(m_l) * left + wide(m_u) * above)
                o = read + (direct[i, j] * (q[i, j] * k[i, j]).sum(-1))[:, None] * v[i, j]
                mean[i, j] += mixer.norm(o) / 4
                edges[i, j + right, "l"] = wide(t_rl) * left + wide(t_ru) * above + wide(s_r) * kv
                edges[i + up, j, "u"] = wide(t_dl) * left + wide(t_du) * above + wide(s_d) * kv
    want = mixer.out(mean.view(R * C, WIDTH)) + mixer.through * x[0]
    assert_near(mixer(x[:1])[0][0], want, what=mode)


def test_bi_gla_in_a_grid_is_two_scans_of_what_a_window_in_the_plane_saw():
    mixer, x = built("bi_gla")
    local = F.silu(mixer.conv(x.view(2, R, C, WIDTH))).flatten(1, 2)
    q, k, v = (p.unflatten(-1, (2, -1)) for p in mixer.qkv(local).split([8, 8, 16], -1))
    ahead, back = (F.logsigmoid(mixer.decay(local)) / 16).chunk(2, -1)
    one = linear_attention(q, k, v, log_decay=ahead.unflatten(-1, (2, -1)), form="recurrent")[0]
    turned = [p.flip(1) for p in (q, k, v, back.unflatten(-1, (2, -1)))]
    other = linear_attention(*turned[:3], log_decay=turned[3], form="recurrent")[0].flip(1)
    gate = mixer.gate(local).sigmoid().unflatten(-1, (2, -1))
    y = gate * mixer.norm((one + other) / 4)
    y = y + (1 - gate) * mixer.local_norm(local.unflatten(-1, (2, -1)))
    assert_near(mixer(x)[0], mixer.out(y.flatten(2)), what="two scans")


def test_one_scan_of_both_directions_equals_two_in_float32():
    q, k, v = (torch.randn(1, 1024, 2, 16) for _ in "qkv")
    ahead, back = (F.logsigmoid(torch.randn(1, 1024, 2, 16)) / 16 for _ in "ab")

    def scan(inputs, state, resets):
        return linear_attention(*inputs[:3], log_decay=inputs[3], state=state, resets=resets)

    one, other, _ = both_ways(scan, (q, k, v, ahead), (q, k, v, back), None, None)
    forward, _ = scan((q, k, v, ahead), None, None)
    reverse, _ = scan(tuple(p.flip(1) for p in (q, k, v, back)), None, None)
    scale = forward.abs().max()
    assert ((one + other) - (forward + reverse.flip(1))).abs().max() <= 1e-6 * scale


# LightNet ----------------------------------------------------------------------------------------


def test_lightnet_everywhere_is_a_mean_by_softmax_over_all_tokens():
    mixer = MIXERS["lightnet"](causal=False).build(WIDTH).double()
    x = torch.randn(2, 20, WIDTH).double()
    q, k, v = (p.unflatten(-1, (4, -1)) for p in mixer.qkv(x).chunk(3, -1))
    S = torch.einsum("bthk,bthv->bhkv", k.softmax(1), v)
    y = torch.einsum("bthk,bhkv->bthv", F.silu(q) / 2, S)
    want = mixer.out(mixer.norm(y.flatten(2)) * F.silu(mixer.gate(x)))
    assert_near(mixer(x)[0], want, what="softmax")
    causal = MIXERS["lightnet"]().build(WIDTH).double()
    causal.load_state_dict(mixer.state_dict())
    assert_near(mixer(x)[0][:, -1], causal(x)[0][:, -1], what="the last token has seen them all")


def test_lightnet_everywhere_keeps_segments_apart_and_sees_the_past():
    mixer = MIXERS["lightnet"](causal=False).build(WIDTH).double()
    x = torch.randn(3, 20, WIDTH).double()
    state, resets = states.detach(mixer(x)[1]), torch.rand(3, 20) < 0.2
    step = lambda xs, state, resets: mixer(xs[0], state, resets)  # noqa: E731
    resets[0, 0] = True
    reset_law(step, (x,), state, resets, params=list(mixer.parameters()))
    rows_law(step, (x,), state, resets=resets)
    whole = mixer(x)
    pieces = mixer(x[:, 7:], mixer(x[:, :7])[1])
    assert_near(pieces[1], whole[1], what="state")
    assert_near(pieces[0], whole[0][:, 7:], what="the last stretch has seen all of them")


def test_lightnet_moves_with_its_tokens_where_a_decay_does_not():
    order, x = torch.randperm(R * C), torch.randn(2, R * C, WIDTH)
    gap = {}
    for name, options in (("lightnet", {"causal": False}), ("bi_gla", {"window": 1})):
        mixer = MIXERS[name](**options).build(WIDTH)
        y, moved = mixer(x)[0], mixer(x[:, order])[0]
        gap[name] = (moved - y[:, order]).abs().max().item() / y.abs().max().item()
    assert gap["lightnet"] <= 1e-6
    assert gap["bi_gla"] > 1e-2


@pytest.mark.parametrize("positions", ["lrpe", "tpe", "both"])
def test_positions_tell_the_tokens_of_a_grid_apart(positions):
    mixer, x = built("lightnet", causal=False, positions=positions)
    order = torch.randperm(R * C)
    y, moved = mixer(x)[0], mixer(x[:, order])[0]
    assert (moved - y[:, order]).abs().max() > 1e-3


def test_scores_of_md_lrpe_depend_on_differences_of_coordinates_only():
    q, k = (torch.randn(8) for _ in "qk")
    everywhere = lambda p: md_lrpe(p.expand(1, 9, 7, 1, 8))[0, :, :, 0]  # noqa: E731
    scores = torch.einsum("rck,sdk->rcsd", everywhere(q), everywhere(k))
    moved = scores[2:, 3:, 2:, 3:]
    assert (moved - scores[:-2, :-3, :-2, :-3]).abs().max() <= 1e-6 * scores.abs().max()
    rows, columns = scores[:, 0, 0, 0], scores[0, :, 0, 0]
    assert rows.std() > 1e-2  # they depend on both
    assert columns.std() > 1e-2
    with pytest.raises(ValueError, match="at least 4 channels a head, got 2"):
        md_lrpe(torch.zeros(1, 2, 2, 1, 2))


def test_md_tpe_is_a_toeplitz_matrix_along_each_axis():
    layer, x = MDToeplitz(4, 2).double(), torch.randn(1, R, C, 4).double()
    want = x.clone()
    for axis, size in ((1, R), (2, C)):
        n = torch.arange(size)
        for h, rate in enumerate(layer.logit[axis - 1].sigmoid()):
            T = (rate ** (n[:, None] - n).clamp(min=0)).tril()
            own = torch.tensordot(T, x[..., 2 * h : 2 * h + 2], ([1], [axis])).movedim(0, axis)
            part = layer.norms[axis - 1](own)
            want = want + part @ layer.maps[axis - 1].weight[:, 2 * h : 2 * h + 2].T
    assert_near(layer(x), want, what="toeplitz")


@pytest.mark.plain
@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("plstm", {"heads": 3}, "heads=3 must divide width=16"),
        ("plstm", {"mode": "Q"}, "mode of plstm"),
        ("plstm", {"rows": 3}, "want columns where rows are given"),
        ("plstm", {"window": 0}, "window at least 1"),
        ("bi_gla", {"columns": 0}, "at least 1 row and column"),
        ("bi_gla", {"columns": 4, "window": 2}, "odd window, got 2"),
        ("lightnet", {"columns": 4}, "take causal=False"),
        ("lightnet", {"causal": False, "positions": "lrpe"}, "give columns"),
        ("lightnet", {"positions": "rope"}, "positions of lightnet"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(name, options, message):
    with pytest.raises(ValueError, match=message):
        MIXERS[name](**options).build(WIDTH)


# pLSTM, as a sequence ----------------------------------------------------------------------------


def test_plstm_of_a_sequence_by_its_equations():
    mixer = MIXERS["plstm"](heads=2).build(WIDTH).double()
    with torch.no_grad():
        mixer.gate.weight.normal_(std=0.3)
        mixer.gate.bias.div_(5)
    x = torch.randn(1, 9, WIDTH).double()
    c = F.conv1d(F.pad(x[0].T, (3, 0)), mixer.conv.weight[:, None], mixer.conv.bias, groups=WIDTH)
    c = F.silu(c.T)
    q, k = (p.view(9, 2, 8) for p in mixer.qk(c).chunk(2, -1))
    v = mixer.value(x[0]).view(9, 2, 8)
    d, s, m, t = mixer.gate(c).view(9, 4, 2).unbind(1)
    E, ys = torch.zeros(2, 8, 8).double(), []
    for n in range(9):
        read = torch.einsum("hk,hkv->hv", q[n] / 8**0.5, E) * m[n].sigmoid()[:, None]
        near = (q[n] / 8**0.5 * k[n]).sum(-1) * d[n].sigmoid()
        ys.append(mixer.norm(read + near[:, None] * v[n]).flatten())
        E = (10 * t[n]).sigmoid()[:, None, None] * E
        E = E + s[n].sigmoid()[:, None, None] * k[n][:, :, None] * v[n][:, None]
    want = mixer.out(torch.stack(ys)) + mixer.through * x[0]
    y, state = mixer(x)
    assert_near(y[0], want, what="outputs")
    assert_near(state.memory[0], E, what="memory")
    split_law(lambda xs, s, r: mixer(*xs, s, r), (x,), state, [4])
