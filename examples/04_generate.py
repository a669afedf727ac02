"""Train a model of bytes on a folder of sources, and let it write."""

from pathlib import Path

import stepscan as ss

if __name__ == "__main__":
    sources = Path(ss.__file__).parent / "ops"
    # Forty steps learn the letters, not the language: give it `minutes=5` to see code.
    model = ss.fit(sources, steps=40, width=64, layers="gated_delta_net", length=128, rows=8)
    bits = model.about["test"]["bits/byte"]
    print(f"{bits:.2f} bits per byte on held-out files; guessing takes 8")

    prompt = "def main(argv):\n    "
    for temperature in (0.0, 0.8):
        text = model.generate(prompt, length=80, temperature=temperature, seed=1)
        print(f"temperature {temperature}: {text!r}")

    same = [model.generate(prompt, length=40, top_k=20, seed=7) for _ in range(2)]
    print("the same seed gives the same text:", same[0] == same[1])
