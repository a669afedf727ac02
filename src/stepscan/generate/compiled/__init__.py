"""A whole model's single step as one native call: see `compile_decoder`."""

from stepscan.generate.compiled.decoder import Decoder, compile_decoder, decoder_of

__all__ = ["Decoder", "compile_decoder", "decoder_of"]
