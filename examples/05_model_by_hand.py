"""A model from a layer pattern and a training loop in plain torch: nothing is hidden."""

import torch
from torch.nn import functional as F

from stepscan.models import ModelConfig, NextToken, SequenceModel

VOCABULARY, ROWS, LENGTH = 32, 16, 64


def draw(rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Two packed documents a row, each one word of 8 letters again and again; and their starts."""
    words = torch.randint(VOCABULARY, (ROWS, 2, 8), generator=rng)
    tokens = words.repeat(1, 1, LENGTH // 16).flatten(1)
    resets = torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    resets[:, LENGTH // 2] = True  # the second document must not see the first
    return tokens, resets


if __name__ == "__main__":
    torch.manual_seed(0)
    rng = torch.Generator().manual_seed(0)
    config = ModelConfig(
        head=NextToken(vocab=VOCABULARY),
        layers="gated_delta_net attention[heads=2]",
        width=48,
        tokens=(VOCABULARY,),
    )
    model = SequenceModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(151):
        tokens, resets = draw(rng)
        logits, _ = model(tokens, None, resets)
        inside = ~resets[:, 1:]  # no next token across a boundary
        cost = F.cross_entropy(logits[:, :-1][inside], tokens[:, 1:][inside])
        optimizer.zero_grad()
        cost.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3}   {cost.item():.3f} nats per token")

    model.eval()
    word = torch.randint(VOCABULARY, (1, 8), generator=rng)
    with torch.no_grad():
        logits, state = model(torch.cat([word, word], 1))
        token, written = logits[:, -1:].argmax(-1), []
        for _ in range(8):  # a step is a call with T = 1
            written.append(int(token))
            logits, state = model(token, state)
            token = logits.argmax(-1)
    right = sum(a == b for a, b in zip(written, word[0].tolist(), strict=True))
    print(f"repeats a new word after two readings: {right} of 8 letters right")
