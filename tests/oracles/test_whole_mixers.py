"""Whole mixers beside other libraries' modules that are given our weights."""

import inspect

import published
import pytest
import torch
from published import DifferenceError, difference

from stepscan.analyze.speed.models import THEIR_NAMES
from stepscan.mixers import MIXERS

if not (published.installed("rwkv") and published.installed("transformers")):
    pytest.skip("wants rwkv and transformers: run `make oracles`", allow_module_level=True)

WIDTH, T = 16, 37


@pytest.fixture(autouse=True)
def _rwkv(monkeypatch, request):
    """Their file asks the environment which version to define."""
    seventh = request.node.callspec.params["name"] == "rwkv7"
    for name, value in {"V7_ON": str(int(seventh)), "JIT_ON": "0", "CUDA_ON": "0"}.items():
        monkeypatch.setenv(f"RWKV_{name}", value)


def weights(mixer):
    """Linear maps as they write them, for rows of inputs."""
    named = {name: p.detach() for name, p in mixer.named_parameters()}
    maps = {name: p.mT for name, p in named.items() if name.endswith(".weight")}
    return named | maps


def of_transformers(mixer, name, config, kind):
    """Their module with our weights, in float64 throughout."""
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=WIDTH, num_hidden_layers=1, **config
    )
    source = f"transformers.models.{name}.modeling_{name}"
    theirs = getattr(published.module(source, wide=True), f"{kind}Mixer")(config, 0).double()
    target = dict(theirs.named_parameters())
    assert len(target) == len(THEIR_NAMES[name])
    with torch.no_grad():
        for ours, p in mixer.named_parameters():
            target[THEIR_NAMES[name][ours]].copy_(p.reshape(target[THEIR_NAMES[name][ours]].shape))
    return lambda x: [theirs(x).detach()]


def mamba(mixer):
    return of_transformers(mixer, "mamba", {}, "Mamba")


def mamba2(mixer):
    heads, groups = len(mixer.D), mixer.config.groups
    config = {"num_heads": heads, "head_dim": 2 * WIDTH // heads, "n_groups": groups}
    return of_transformers(mixer, "mamba2", config, "Mamba2")


def by_rows(call):
    """Theirs takes one sequence."""
    return lambda x: [torch.stack(parts) for parts in zip(*map(call, x), strict=True)]


def rwkv6(mixer):
    """Theirs is a block: the norm before it is taken out, the input added after it taken off."""
    norm = "F.layer_norm(x, (x.shape[-1],), weight=ln_w, bias=ln_b)"
    found = published.module("rwkv.model", wide=True, edit=(norm, "x")).RWKV.att_seq_v6_0
    w, zeros = weights(mixer), torch.zeros(WIDTH, dtype=torch.float64)
    (H, N), mix = w["bonus"].shape, w["mix"]
    given = {
        "sx": zeros, "s": torch.zeros(H, N, N, dtype=torch.float64),
        "lx_w": w["norm_weight"], "lx_b": w["norm_bias"], "x_maa": mix[0],
        **{f"{n}_maa": m for n, m in zip("wkvrg", mix[1:], strict=True)},
        "tm_w1": w["mix_down.weight"], "tm_w2": w["mix_up"],
        "td_w1": w["decay_down.weight"], "td_w2": w["decay_up.weight"],
        "t_decay": w["decay_bias"].view(H, N, 1), "t_first": w["bonus"][..., None],
        "kw": w["key.weight"], "vw": w["value.weight"], "rw": w["receptance.weight"],
        "gw": w["gate.weight"], "ow": w["out.weight"],
    }  # fmt: skip
    given = {name: given.get(name) for name in inspect.signature(found).parameters}

    def call(x):
        y, last, memory = found(**given | {"x": x})
        return y - x, memory, last

    return by_rows(call)


def rwkv7(mixer):
    """Their constant for exp(-1/2) has 6 digits: it is replaced by the number."""
    found = published.module(
        "rwkv.model", wide=True, edit=("-0.606531 ", "-math.exp(-0.5) ")
    ).RWKV_x070_TMix_seq
    w = weights(mixer)
    H, N = w["bonus"].shape
    low = {"w": "decay", "a": "rate", "g": "gate"}
    mixes = {f"x_{n}": m for n, m in zip("rwkvag", w["mix"], strict=True)}
    given = mixes | {
        **{f"{n}1": w[f"{name}.down.weight"] for n, name in low.items()},
        **{f"{n}2": w[f"{name}.up.weight"] for n, name in low.items()},
        "layer_id": 0, "H": H, "N": N, "v0": None, "v1": None, "v2": None, "v_first": None,
        "w0": w["decay_bias"], "a0": w["rate_bias"], "k_k": w["key_scale"], "k_a": w["key_rate"],
        "r_k": w["bonus"].flatten(), "R_": w["receptance.weight"], "K_": w["key.weight"],
        "V_": w["value.weight"], "O_": w["out.weight"],
        "ln_w": w["norm_weight"], "ln_b": w["norm_bias"],
        "x_prev": torch.zeros(WIDTH, dtype=torch.float64),
        "state": torch.zeros(H, N, N, dtype=torch.float64),
    }  # fmt: skip

    def call(x):
        y, last, memory, _ = found(**given | {"x": x})
        return y, memory.mT, last  # their memory is V x K

    return by_rows(call)


THEIRS = {
    "mamba": (mamba, {}),
    "mamba2": (mamba2, {}),
    "mamba2, groups": (mamba2, {"groups": 2}),
    "rwkv6": (rwkv6, {}),
    "rwkv7": (rwkv7, {}),
}
every_mixer = pytest.mark.parametrize("name", THEIRS)


def both(name):
    """Ours, theirs with the same weights, and what both read."""
    theirs, config = THEIRS[name]
    mixer = MIXERS[name.partition(",")[0]](**config).build(WIDTH).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.3 * torch.randn_like(p))  # published zeros would hide what is behind them
        if name == "rwkv7":  # ours adds 1e-6 to |k|^2 before it divides: too little to be seen
            mixer.key_scale.mul_(1e4)
    return mixer, theirs(mixer), torch.randn(2, T, WIDTH, dtype=torch.float64)


def ours(mixer, x, count):
    """Output and state, as much of it as theirs gives."""
    with torch.no_grad():
        y, state = mixer(x)
    return [y, *state][:count]


@every_mixer
def test_outputs_and_states(name, record_property):
    mixer, theirs, x = both(name)
    want = theirs(x)
    found = difference(ours(mixer, x, len(want)), want)
    record_property("difference", (f"{name}, the whole mixer", "torch.float64", found))


@every_mixer
def test_every_weight_counts(name):
    mixer, theirs, x = both(name)
    want = [t.clone() for t in theirs(x)]
    for p in mixer.parameters():
        before = p.detach().clone()
        with torch.no_grad():
            p.add_(0.1 * torch.randn_like(p) * p.abs().mean())
            got = ours(mixer, x, len(want))
            p.copy_(before)
        with pytest.raises(DifferenceError):
            difference(got, want)
