"""Choosing a token from logits: temperature, then top-k, top-p and min-p, then a draw.

Sources: top-p (arXiv:1904.09751), min-p (arXiv:2407.01082).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How to choose; the defaults draw from the model's own distribution."""

    temperature: float = 1.0
    """Logits are divided by it; 0 always takes the likeliest token."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the smallest set of likeliest tokens that holds this much probability."""
    min_p: float = 0.0
    """Keep tokens at least this many times as likely as the likeliest."""

    def __post_init__(self) -> None:
        """Reject what has no meaning."""
        bounds = {
            "temperature": (self.temperature, 0.0, 100.0),
            "top_k": (self.top_k, 0, 1 << 24),
            "top_p": (self.top_p, 1e-6, 1.0),
            "min_p": (self.min_p, 0.0, 1.0),
        }
        for name, (value, low, high) in bounds.items():
            if not low <= value <= high:
                raise ValueError(f"sampling: want {name} from {low} to {high}, got {value}")

    def choose(self, logits: Float[Tensor, "B V"], rng: torch.Generator) -> Int[Tensor, "B"]:
        """One token per row."""
        if self.temperature == 0:
            return logits.argmax(-1)
        p = self.probabilities(logits)
        return torch.multinomial(p, 1, generator=rng).squeeze(-1)

    def probabilities(self, logits: Float[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """What `choose` draws from."""
        p = (logits.float() / max(self.temperature, 1e-6)).softmax(-1)
        if not self.top_k and self.top_p == 1 and not self.min_p:  # a sort costs more than a step
            return p / p.sum(-1, keepdim=True)
        sorted_p, order = p.sort(-1, descending=True)
        keep = torch.ones_like(p, dtype=torch.bool)
        if self.top_k:
            keep[..., self.top_k :] = False
        if self.top_p < 1:  # keep a token if those before it do not hold enough yet
            keep &= sorted_p.cumsum(-1) - sorted_p < self.top_p
        keep &= sorted_p >= self.min_p * sorted_p[..., :1]
        kept = torch.zeros_like(p).scatter(-1, order, sorted_p * keep)
        return kept / kept.sum(-1, keepdim=True)
