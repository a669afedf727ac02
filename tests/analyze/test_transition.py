"""What each mixer says it is, held against the Jacobian of its step; and the checks themselves."""

import sys
from pathlib import Path

import pytest
import torch

import stepscan
from stepscan.analyze import forms
from stepscan.analyze.transition import STRUCTURES, TOKENS, Part, structure, transition
from stepscan.mixers import MIXERS, Mixer

WIDTH, T = 16, 9
ROOT = Path(stepscan.__file__).parent
MEASURED = {  # what one step cannot show, and why
    "log_linear": "its levels hand their matrices on, and a step decays only those at work",
    "memory_caching": "its copies grow; the memory at work is that of the mixer inside",
    "longformer": "its first tokens stay, the others move on and out",
    "performer": "its memory is kept in units of the largest feature so far",
    "mlstm_large": "its memory is kept in units that fade as it does",
    "path": "the keys that it turns grow in number",
    "rwkv4": "it keeps the ratio of two sums, and how large they are",
    "seqboat": "most of its state are tokens that asked for attention",
}
every_mixer = pytest.mark.parametrize("name", MIXERS)


def perturbed(name):
    """The default, without published zeros."""
    torch.manual_seed(0)
    mixer = MIXERS[name]().build(WIDTH).double()
    with torch.no_grad():
        for p in mixer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return mixer


def measure(name):
    return transition(perturbed(name), torch.randn(1, T, WIDTH, dtype=torch.float64))


def memory(parts):
    """The parts whose structure is that of the memory."""
    return [p for p in parts if p.structure == structure(parts) and p.structure != "none"]


def lie_in(eigenvalues, where):
    real, size = eigenvalues.real, eigenvalues.abs()
    straight = bool((eigenvalues.imag.abs() < 1e-7).all())
    return {
        "-": lambda: True,
        "1": lambda: straight and torch.allclose(real, torch.ones_like(real)),
        "[0, 1]": lambda: straight and bool((real > -1e-7).all() and (real < 1 + 1e-7).all()),
        "[-1, 1]": lambda: straight and bool((size < 1 + 1e-7).all()),
        "disc": lambda: bool((size < 1 + 1e-7).all()),
        "any": lambda: True,
    }[where]()


@every_mixer
def test_a_step_does_what_the_mixer_says(name):
    kind = MIXERS[name].taxonomy
    if not MIXERS[name]().build(WIDTH).causal or name in MEASURED:
        pytest.skip(MEASURED.get(name, "no step: it reads both ways"))
    parts = measure(name)
    found = memory(parts)
    want = {"householder": "dense"}.get(kind.transition, kind.transition)
    assert structure(parts) == want
    if found and want != "nonlinear":
        assert {p.gate for p in found} <= {kind.gate, "fixed"}
        assert kind.gate in {p.gate for p in found}
        assert all(lie_in(p.eigenvalues, kind.eigenvalues) for p in found)
    assert (kind.gate == "state") == (kind.transition == "nonlinear")


HEADWISE = [
    n
    for n, c in MIXERS.items()
    if getattr(c, "taxonomy", None) and c.taxonomy.transition == "householder"
]


@pytest.mark.parametrize("name", [n for n in HEADWISE if n not in MEASURED])
def test_householder_steps_turn_every_column_of_a_head_alike(name):
    """J = A (x) 1 for each head, A a matrix over the keys: what tells them from dense ones."""
    x = torch.randn(1, T, WIDTH, dtype=torch.float64)
    mixer = perturbed(name)
    state = mixer(x[:, :-1])[1]
    memory = state.memory.detach().requires_grad_()
    after = mixer(x[:, -1:], state._replace(memory=memory))[1].memory
    K, V = memory.shape[-2:]
    for head, matrix in enumerate(after.view(-1, K, V)):  # of every memory, where there are several
        rows = [torch.autograd.grad(y, memory, retain_graph=True)[0] for y in matrix.flatten()]
        jacobian = torch.stack([row.view(-1, K, V)[head].flatten() for row in rows])
        turned = jacobian.view(K, V, K, V)
        one = turned[:, 0, :, 0]
        assert torch.allclose(turned, torch.einsum("ij,vw->ivjw", one, torch.eye(V).double()))


@every_mixer
def test_the_ops_a_mixer_names_are_those_it_calls(name):
    """All that mixers/ and layers/ call, and nothing that is never called."""
    files = {str(Path(m.__file__)): op for op, m in forms.modules().items()}
    called, directly = set(), set()

    def note(frame, event, _):
        op = files.get(frame.f_code.co_filename)
        if event == "call" and frame.f_code.co_name == op:
            called.add(op)
            caller = frame.f_back.f_code.co_filename if frame.f_back else ""
            if caller.startswith((str(ROOT / "mixers"), str(ROOT / "layers"))):
                directly.add(op)

    mixer, x = MIXERS[name]().build(WIDTH), torch.randn(1, 40, WIDTH)
    sys.setprofile(note)
    try:
        mixer(x)
    finally:
        sys.setprofile(None)
    assert directly <= set(MIXERS[name].taxonomy.ops) <= called


class Plain(Mixer):
    """h = A h + x, with the transition under test."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def init_state(self, batch, *, device=None, dtype=None):
        return (torch.zeros(batch, 4, 4, dtype=dtype),)

    def forward(self, x, state=None, resets=None):
        (h,) = self.init_state(1, dtype=x.dtype) if state is None else state
        for token in x.unbind(1):
            h = self.step(h, token)
        return x, (h,)


A = torch.randn(4, 4, dtype=torch.float64) / 4
STEPS = {
    ("none", "fixed"): lambda h, x: torch.cat([h[..., 1:], x[:, :, None].expand(1, 4, 1)], -1),
    ("scalar", "fixed"): lambda h, x: 0.9 * h + x[:, None],
    ("scalar", "input"): lambda h, x: x.sigmoid()[:, :, None] * h,
    ("diagonal", "input"): lambda h, x: x.sigmoid()[:, None] * h,
    ("dense", "fixed"): lambda h, x: h @ A + x[:, None],
    ("dense", "input"): lambda h, x: h @ (A * x) + x[:, None],
    ("nonlinear", "state"): lambda h, x: torch.tanh(0.9 * h + x[:, None]),
}


@pytest.mark.parametrize("said", STEPS, ids="-".join)
def test_each_kind_is_told_from_the_others(said):
    x = torch.randn(1, T, 4, dtype=torch.float64)
    (part,) = transition(Plain(STEPS[said]), x)
    assert (part.structure, part.gate) == said


def test_eigenvalues_are_those_of_the_step():
    (part,) = transition(Plain(STEPS["dense", "fixed"]), torch.randn(1, T, 4, dtype=torch.float64))
    want = torch.linalg.eigvals(A).abs().sort().values.repeat_interleave(4)
    for found in part.eigenvalues.chunk(TOKENS):
        assert torch.allclose(found.abs().sort().values, want)


@pytest.mark.parametrize(("wrong", "where"), [(-0.5, "[0, 1]"), (1.5, "disc"), (0.5j, "[-1, 1]")])
def test_eigenvalues_outside_are_seen(wrong, where):
    assert not lie_in(torch.tensor([0.5, wrong], dtype=torch.complex128), where)
    assert lie_in(torch.tensor([0.5, 0.7], dtype=torch.complex128), where)


def test_the_larger_part_says_what_the_memory_is():
    part = lambda size, kind: Part("", size, kind, "input", torch.zeros(1))  # noqa: E731
    assert structure([part(100, "scalar"), part(4, "nonlinear"), part(900, "none")]) == "scalar"
    assert structure([part(100, "scalar"), part(100, "nonlinear")]) == "nonlinear"
    assert structure([part(7, "none")]) == STRUCTURES[0]


def test_what_has_no_step_is_refused():
    with pytest.raises(ValueError, match="causal"):
        transition(MIXERS["hydra"]().build(WIDTH), torch.zeros(1, T, WIDTH))
    with pytest.raises(ValueError, match="T > 3"):
        transition(MIXERS["gla"]().build(WIDTH), torch.zeros(1, 3, WIDTH))
