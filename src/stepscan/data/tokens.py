"""Tokens of a language model that was trained elsewhere: with its tokenizer, or as bare numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from stepscan.data.base import DataError, Schema


@dataclass(frozen=True, kw_only=True)
class TokenSchema(Schema):
    """How prompts become tokens, and tokens text."""

    kind: ClassVar[str] = "tokens"

    size: int
    """The model's vocabulary; its tokenizer may use less of it."""
    tokenizer: str | None = None
    """The JSON of the `tokenizers` library. None: prompts and answers are numbers."""
    first: int | None = None
    """The token that begins a text."""
    ends: tuple[int, ...] = ()
    """Tokens that end one."""

    @property
    def tokens(self) -> tuple[int, ...]:
        """One column."""
        return (self.size,)

    @property
    def reals(self) -> int:
        """None."""
        return 0

    def begin(self, text: str) -> list[int]:
        """The tokens of a prompt, with those that the tokenizer puts before every text."""
        ids = self.encode(text, special=True)
        if not ids and self.first is None:
            raise DataError("want a prompt: this model has no token that begins a text")
        return ids or self._checked([self.first])

    def encode(self, text: str, *, special: bool = False) -> list[int]:
        """The tokens of a text; `special` adds those that the tokenizer puts around it."""
        if self.tokenizer is not None:
            return self._checked(_load(self.tokenizer).encode(text, add_special_tokens=special).ids)
        try:
            ids = [int(word) for word in text.split()]
        except ValueError:
            raise DataError(
                "this model came without a tokenizer: want a prompt of token numbers, as in "
                f"'12 7 9', each below {self.size:,}; got {text!r:.60}"
            ) from None
        return self._checked(ids)

    def continuation(self, begun: Sequence[int], drawn: Sequence[int]) -> str:
        """What these tokens say after those."""
        if self.tokenizer is None:
            return "".join(f" {token}" for token in drawn)
        # Together: some tokenizers drop the space before the first word of what they decode.
        before, both = (_load(self.tokenizer).decode([*ids]) for ids in (begun, [*begun, *drawn]))
        return both[len(before) :]

    def _checked(self, ids: Sequence[Any]) -> list[int]:
        if wrong := [i for i in ids if not 0 <= i < self.size]:
            raise DataError(f"token {wrong[0]} is not one of this model's {self.size:,}")
        return list(ids)


@lru_cache(maxsize=8)
def _load(saved: str) -> Any:
    from tokenizers import Tokenizer  # noqa: PLC0415

    try:
        return Tokenizer.from_str(saved)
    except Exception as error:  # what the library raises has no narrower type
        raise DataError(f"tokenizer.json: not a tokenizer ({error})") from None


def check_tokenizer(saved: str) -> None:
    """Refuse what the library cannot read."""
    _load(saved)
