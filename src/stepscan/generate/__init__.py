"""From logits to tokens: how to choose one, and how to go on from there."""

from stepscan.generate.compiled import Decoder, compile_decoder
from stepscan.generate.decode import decode
from stepscan.generate.sampling import Sampling

__all__ = ["Decoder", "Sampling", "compile_decoder", "decode"]
