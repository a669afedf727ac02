"""`qwen3_5_text`: as `qwen3_next` without experts, the maps of Gated DeltaNet one for each use.

`qwen3_5` holds such a model beside one for pictures, which is left out.
"""

from dataclasses import replace

from stepscan.models.imports import qwen3_next
from stepscan.models.imports.base import Format, Settings, Sources, window


def sources(settings: Settings) -> Sources:
    """By our names."""
    return qwen3_next.layers(settings, _delta_net)


def _delta_net(settings: Settings, theirs: str) -> Sources:
    ours = "blocks.{i}.mixer."
    return {
        ours + "inputs.qkv.weight": theirs + "in_proj_qkv.weight",
        ours + "inputs.conv.weight": window(theirs + "conv1d.weight"),
        ours + "inputs.strength.weight": theirs + "in_proj_b.weight",
        ours + "decay.step.weight": theirs + "in_proj_a.weight",
        ours + "decay.log_rate": theirs + "A_log",
        ours + "decay.step_bias": theirs + "dt_bias",
        ours + "gate.weight": theirs + "in_proj_z.weight",
        ours + "norm.weight": theirs + "norm.weight",
        ours + "out.weight": theirs + "out_proj.weight",
    }


QWEN3_5_TEXT = Format(
    config=qwen3_next.config,
    sources=sources,
    embedding="model.embed_tokens.weight",
    unused=qwen3_next.DRAFTING,
)
QWEN3_5 = replace(
    QWEN3_5_TEXT,
    inside="text_config",
    renamed={"model.language_model.": "model."},
    unused=rf"{qwen3_next.DRAFTING}|model\.visual\..*",
)
