"""Layer patterns: "(gated_delta_net*3 attention[window=64])*2" is eight mixer configs.

pattern = item*                      separated by spaces
item    = (name options? | "(" pattern ")") ("*" count)?
options = "[" key "=" value ("," key "=" value)* "]"        values as in Python
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from stepscan.mixers import MixerConfig, from_dict

MOST = 1024  # layers: a typing error such as *3000 should not fill the memory
TOKEN = re.compile(r"\s*(?:([A-Za-z_]\w*)(?:\[([^\]]*)\])?|\*\s*(\d+)|([()]))")


T = TypeVar("T")
Read = Callable[[Mapping[str, Any]], T]


def parse(pattern: str) -> tuple[MixerConfig, ...]:
    """The mixers of a pattern, lowest layer first; `ValueError` says where it cannot be read."""
    return parse_with(from_dict, pattern)


def parse_with(read: Read[T], pattern: str) -> tuple[T, ...]:
    """The same of whatever `read` makes of a name and its options."""
    tokens = list(_tokens(pattern))
    configs, rest = _sequence(tokens, 0, pattern, read)
    if rest != len(tokens):
        raise ValueError(f"layers {pattern!r}: ')' without '('")
    if not configs:
        raise ValueError(f"layers {pattern!r}: want at least one mixer, as in 'gla*4'")
    return tuple(configs)


def _tokens(pattern: str) -> Iterator[re.Match[str]]:
    at, end = 0, len(pattern.rstrip())
    while at < end:
        token = TOKEN.match(pattern, at)
        if token is None:
            raise ValueError(f"layers {pattern!r}: cannot read {pattern[at:]!r}")
        yield token
        at = token.end()


def _sequence(
    tokens: list[re.Match[str]], at: int, pattern: str, read: Read[T]
) -> tuple[list[T], int]:
    """The items from `at` up to the closing parenthesis or the end."""
    configs: list[T] = []
    while at < len(tokens) and tokens[at][4] != ")":
        name, options, _, opening = tokens[at].groups()
        if opening:
            item, at = _sequence(tokens, at + 1, pattern, read)
            if at == len(tokens):
                raise ValueError(f"layers {pattern!r}: '(' is never closed")
        elif name:
            item = [read({"name": name} | _options(options or "", pattern))]
        else:
            raise ValueError(f"layers {pattern!r}: '*' wants a mixer or ')' before it")
        at += 1
        if at < len(tokens) and tokens[at][3]:
            item = item * min(int(tokens[at][3]), MOST + 1)
            at += 1
        configs += item
        if len(configs) > MOST:
            raise ValueError(f"layers {pattern!r}: more than {MOST} layers")
    return configs, at


def _options(text: str, pattern: str) -> dict[str, object]:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
        assert isinstance(call, ast.Call)
        if call.args or any(word.arg is None for word in call.keywords):
            raise ValueError("want key=value")
        return {str(word.arg): ast.literal_eval(word.value) for word in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"layers {pattern!r}: cannot read the options [{text}]: {error}") from None
