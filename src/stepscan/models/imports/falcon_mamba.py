"""`falcon_mamba` (arXiv:2410.05355): Mamba with RMS-normed steps, input and output maps."""

from dataclasses import replace

from stepscan.mixers.mamba import MambaConfig
from stepscan.models.config import ModelConfig
from stepscan.models.imports import mamba
from stepscan.models.imports.base import Format, Settings


def config(settings: Settings) -> ModelConfig:
    """Our config."""
    eps = settings.number("mixer_rms_eps", 1e-6)
    plain = mamba.config(settings)
    layers = tuple(c for c in plain.mixers if isinstance(c, MambaConfig))
    return replace(plain, layers=tuple(replace(c, selection_norm=eps) for c in layers))


FALCON_MAMBA = Format(config=config, sources=mamba.sources, embedding="backbone.embeddings.weight")
