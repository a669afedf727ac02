"""Mixture of experts: a channel mixer of several, of which each token takes a few.

    p = softmax(W_r x)                                            E experts, top k of p are chosen
    y = sum_i w_i SwiGLU_i(x) + sigmoid(w_s . x) SwiGLU_s(x)      the last one if `shared`

w is p at the chosen, divided by its sum there (`normalize`: Mixtral, arXiv:2401.04088, Qwen3) or as
it is (Switch, arXiv:2101.03961; Jamba, arXiv:2403.19887). The shared expert with its gate is that
of Qwen's models, `shared` times as wide as the others; 0 is none. No token is dropped: there is no
capacity, so that each stays on its own.
The cost `balance` E sum_i f_i P_i (Switch), f_i the part of all choices that fell on expert i and
P_i its mean probability, is 1 times the weight where experts are used alike; `layers.costs`.
Cost: k SwiGLUs a token; inside `torch.compile`, which knows no sizes that depend on data, all E.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.layers.costs import charge
from stepscan.layers.mlp import SwiGLU, hidden_width
from stepscan.layers.projection import Linear


class Experts(nn.Module):
    """See the module docstring."""

    def __init__(
        self,
        width: int,
        ratio: float = 8 / 3,
        *,
        experts: int = 4,
        top: int = 2,
        normalize: bool = True,
        shared: float = 0.0,
        balance: float = 0.01,
    ) -> None:
        super().__init__()
        if not 1 <= top <= experts:
            raise ValueError(f"moe: want 1 <= top <= experts, got {top} of {experts}")
        if not (balance >= 0 and shared >= 0):
            raise ValueError(f"moe: want balance and shared at least 0, got {balance} and {shared}")
        hidden = hidden_width("moe", width, ratio)
        self.top, self.normalize, self.balance = top, normalize, balance
        self.router = Linear(width, experts, bias=False)
        self.gate = nn.Parameter(torch.empty(experts, hidden, width))
        self.value = nn.Parameter(torch.empty(experts, hidden, width))
        self.out = nn.Parameter(torch.empty(experts, width, hidden))
        self.shared = SwiGLU(width, ratio * shared) if shared else None
        self.shared_gate = Linear(width, 1, bias=False) if shared else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fresh initial values, each expert's as a linear map's."""
        for weight in (self.gate, self.value, self.out):
            bound = weight.shape[-1] ** -0.5
            nn.init.uniform_(weight, -bound, bound)

    def forward(self, x: Float[Tensor, "*n D"]) -> Float[Tensor, "*n D"]:
        """Each token on its own."""
        tokens = x.reshape(-1, x.shape[-1])
        wide = torch.promote_types(x.dtype, torch.float32)
        p = self.router(tokens).to(wide).softmax(-1).to(x.dtype)
        weights, chosen = p.topk(self.top, -1)
        self._charge(p, chosen)
        if self.normalize:
            weights = weights / weights.sum(-1, keepdim=True)
        run = self._all if torch.compiler.is_compiling() else self._chosen
        y = run(tokens, weights, chosen)
        if self.shared is not None and self.shared_gate is not None:
            y = y + torch.sigmoid(self.shared_gate(tokens)) * self.shared(tokens)
        return y.view_as(x)

    def _charge(self, p: Float[Tensor, "N E"], chosen: Int[Tensor, "N k"]) -> None:
        count, used = p.shape[1], F.one_hot(chosen, p.shape[1]).sum(1)
        if len(p):
            share = used.to(p.dtype).mean(0) / self.top
            charge("balance", count * (share * p.mean(0)).sum(), weight=self.balance)

    def _chosen(
        self, x: Float[Tensor, "N D"], weights: Float[Tensor, "N k"], chosen: Int[Tensor, "N k"]
    ) -> Float[Tensor, "N D"]:
        """The tokens of each expert, one expert after the other."""
        y = torch.zeros_like(x)
        for i, (gate, value, out) in enumerate(zip(self.gate, self.value, self.out, strict=True)):
            token, place = (chosen == i).nonzero(as_tuple=True)
            own = x[token]
            part = F.linear(F.silu(F.linear(own, gate)) * F.linear(own, value), out)
            y = y.index_add(0, token, part * weights[token, place, None])
        return y

    def _all(
        self, x: Float[Tensor, "N D"], weights: Float[Tensor, "N k"], chosen: Int[Tensor, "N k"]
    ) -> Float[Tensor, "N D"]:
        """All tokens by all experts, most with weight 0."""
        share = weights.new_zeros(len(x), len(self.gate)).scatter(1, chosen, weights)
        hidden = F.silu(x @ self.gate.mT) * (x @ self.value.mT)
        return torch.einsum("end,ne->nd", hidden @ self.out.mT, share)
