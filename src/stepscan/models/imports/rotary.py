"""Rotations without a stretch, written in a group of their own or in the config itself."""

from typing import Any

from stepscan.models.imports.base import Settings


def plain_rotary(settings: Settings, part: float) -> dict[str, Any]:
    """Options of our attention; `part` is the rotated part of a head where the config has none.

    A base that is there and null means no rotations.
    """
    group = settings.part("rope_parameters")
    group.only("rope_type", "default")
    settings.only("rope_scaling", None)
    both = Settings({**settings.values, **group.values}, settings.where)
    if both.values.get("rope_theta", 0) is None:
        return {"rotary": False}
    return {
        "rotary_base": both.number("rope_theta", 10000.0),
        "rotary_part": both.number("partial_rotary_factor", part),
    }
