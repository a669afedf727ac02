"""Read a sequence in pieces: the answers do not depend on the cuts, and memory does not grow."""

from itertools import pairwise
from pathlib import Path

import torch

import stepscan as ss

if __name__ == "__main__":
    words = "the cat saw the dog and the dog saw the cat and all was well . "
    Path("story.txt").write_text(words * 200)
    model = ss.fit("story.txt", steps=20, width=32, layers="mamba2", quiet=True)

    text = words * 40
    whole, state = model.stream(text)

    cuts = [0, 1, 2, 700, 701, len(text)]
    pieces, carried = [], None
    for start, end in pairwise(cuts):
        said, carried = model.stream(text[start:end], carried)
        pieces.append(said)
        print(f"read {end:5,} bytes   state {model.nbytes(carried):,} bytes")

    torch.testing.assert_close(torch.cat(pieces), whole, atol=1e-4, rtol=0)
    print("the same answers, whole or in pieces")

    # A state is plain tensors: keep it, send it, go on from it as often as you like.
    for ending in ("the cat", "the dog"):
        said, _ = model.stream(ending, carried)
        likely = bytes([said[-1, :256].argmax()])
        print(f"after {ending!r} comes {likely!r}")
