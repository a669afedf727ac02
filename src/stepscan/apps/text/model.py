"""A model of text: it generates."""

from typing import ClassVar

from stepscan.apps.model import Model
from stepscan.apps.text.domain import generate
from stepscan.data.base import Schema
from stepscan.data.text import TextSchema
from stepscan.data.tokens import TokenSchema
from stepscan.generate import Sampling
from stepscan.models import NextToken
from stepscan.models.heads import HeadConfig


class TextModel(Model):
    """What `fit` returns for text, and `import_checkpoint` for a language model."""

    asks: ClassVar[tuple[str, ...]] = ("generate", "stream")

    @classmethod
    def answers(cls, head: HeadConfig, schema: Schema) -> bool:
        """Logits of its tokens."""
        return isinstance(head, NextToken) and head.vocab == schema.tokens[0]

    def generate(
        self,
        prompt: str = "",
        *,
        length: int = 400,
        temperature: float = 0.8,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        stop: str | None = None,
        seed: int = 0,
        dtype: str = "fp32",
    ) -> str:
        """Text that goes on after the prompt; see `Sampling` for the options.

        `dtype="bf16"` or `"int8"` rounds the weights for new tokens: faster, and nearly as good.
        """
        schema = self.schema
        assert isinstance(schema, TextSchema | TokenSchema)
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
        return generate(
            self.network,
            schema,
            prompt,
            length=length,
            sampling=sampling,
            stop=stop,
            seed=seed,
            dtype=dtype,
        )


MODEL = TextModel
