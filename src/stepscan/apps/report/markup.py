"""HTML and SVG by function calls: whatever is not already `Markup` is escaped on the way in.

A report shows text that comes from users' files (names, samples, cells). No part of it can become
a tag or leave its attribute, because only `tag` makes `Markup` and it escapes everything else.
"""

import html
from collections.abc import Iterable
from typing import TypeAlias


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


Child: TypeAlias = "Markup | str | int | float | Iterable[Child] | None"

# Control characters are shown as their pictures, and marks that turn the reading direction of
# everything after them are shown as the replacement character.
_SHOWN = (
    {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    | {code: 0xFFFD for code in (*range(0x7F, 0xA0), *range(0x202A, 0x202F))}
    | {code: 0xFFFD for code in (*range(0x2066, 0x206A), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF)}
)


def text(value: object) -> Markup:
    """Return `value` as text that is safe between tags and inside quotes."""
    return Markup(html.escape(str(value).translate(_SHOWN)))


def join(*children: Child) -> Markup:
    """Return the children one after another, escaped unless they are `Markup`."""
    return Markup("".join(_render(child) for child in children))


def tag(name: str, /, *children: Child, **attributes: object) -> Markup:
    """Return one element; `class_` is class, `stroke_width` is stroke-width, None is left out."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{words}>{join(*children)}</{name}>")


def _render(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return child
    if isinstance(child, str | int | float):
        return text(child)
    return "".join(_render(part) for part in child)


def _number(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
