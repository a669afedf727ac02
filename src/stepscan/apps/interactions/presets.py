"""Published recommenders by name, wherever layers are named: `--layers sasrec`.

    sasrec      Kang and McAuley 2018, arXiv:1808.09781: causal self-attention over learned
                positions, items embedded and scored with one table.
    bert4rec    Sun et al. 2019, arXiv:1904.06690: attention both ways, hidden items filled in.
    sigma       Liu et al. 2024, arXiv:2408.11451: partially flipped bidirectional Mamba and a GRU.
    unirec      Liu, Wang and Feng 2024, arXiv:2406.18470: times are read, and users of uneven
                habits and items taken seldom learn from the others, see `train/enhance.py`.

Options stand in brackets: `sasrec[loss="binary", length=200]`. `mixer` puts another one in the
place of the attention and leaves the rest: `sasrec[mixer="mamba2"]`.

Norms, biases, gelu and initial values are as in RecBole 1.2.1, whose figures most papers quote:
norms on the sums, an inner width of four times the model's. SASRec's paper has them before
(`place="before"`), ReLU and an inner width of one, no output map, and descends `loss="binary"`.
Adding one: a function, a line in PRESETS, one in docs/recommendation.md.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from stepscan.data.base import DataOptions
from stepscan.models import Cloze, NextItem
from stepscan.models.heads.enhanced_item import EnhancedItem
from stepscan.models.pattern import parse_with
from stepscan.names import lookup

ATTENTION = (
    "attention[heads={heads}, rotary=False, qkv_bias=True, out_bias=True, dropout={drop}{more}]"
)


def sasrec(
    vocab: int,
    *,
    depth: int = 2,
    heads: int = 2,
    length: int = 50,
    dropout: float = 0.5,
    loss: str = "softmax",
    negatives: int = 1,
    place: str = "post",
    mixer: str | None = None,
) -> dict[str, Any]:
    """The fields of a `ModelConfig`.

    Args:
        vocab: Number of items, with the one that is not known.
        depth: Blocks.
        heads: Of the attention.
        length: Positions: so many of the newest items are read.
        dropout: Of the embeddings, of what blocks add, and of the weights of the attention.
        loss: See `train/item_loss.py`.
        negatives: Drawn items, for binary and sampled.
        place: Of the norms, see `ModelConfig.norm_place`.
        mixer: Instead of attention; then without positions, over the whole history.
    """
    head = NextItem(vocab=vocab, bias=False, loss=loss, negatives=negatives)
    layer = ATTENTION.format(heads=heads, drop=dropout, more="")
    return _transformer(layer, mixer, depth, length, dropout, place) | {"head": head}


def bert4rec(
    vocab: int,
    *,
    depth: int = 2,
    heads: int = 2,
    length: int = 50,
    dropout: float = 0.2,
    share: float = 0.2,
    last: float = 0.5,
    place: str = "post",
    mixer: str | None = None,
) -> dict[str, Any]:
    """The fields of a `ModelConfig`; those not said here are as in `sasrec`.

    Args:
        vocab: Number of items, with the one that is not known.
        depth: Blocks.
        heads: Of the attention.
        length: Positions, one of them for the question.
        dropout: As in `sasrec`.
        share: Part of the items hidden while training.
        last: Part of the sequences where only the last item is hidden.
        place: Of the norms.
        mixer: Instead of attention: one that reads both ways, such as bi_gla.
    """
    head = Cloze(vocab=vocab, project=True, share=share, last=last)
    layer = ATTENTION.format(heads=heads, drop=dropout, more=", causal=False")
    return _transformer(layer, mixer, depth, length, dropout, place) | {"head": head}


def sigma(
    vocab: int,
    *,
    depth: int = 1,
    keep: int = 5,
    dropout: float = 0.2,
    share: float = 0.2,
    last: float = 0.5,
    place: str = "post",
    mixer: str | None = None,
) -> dict[str, Any]:
    """The fields of a `ModelConfig`: no positions, a training window of the newest items is read.

    SIGMA trains on what follows the last item, read off there; here a hidden item behind it asks,
    and with `share` others are asked on the way.

    Args:
        vocab: Number of items, with the one that is not known.
        depth: Blocks.
        keep: Items at the end that are not flipped.
        dropout: As in `sasrec`.
        share: Part of the items hidden while training; 0 with last=1 is nearest to the paper.
        last: Part of the sequences where only the last item is hidden.
        place: Of the norms.
        mixer: Instead of the block of SIGMA: one that reads both ways.
    """
    head = Cloze(vocab=vocab, bias=False, share=share, last=last)
    layer = f"sigma[keep={keep}]" if mixer is None else mixer
    return _transformer("", layer, depth, 0, dropout, place) | {"head": head}


def unirec(
    vocab: int,
    *,
    depth: int = 2,
    heads: int = 2,
    length: int = 50,
    dropout: float = 0.3,
    loss: str = "softmax",
    negatives: int = 1,
    place: str = "post",
    sequence: float = 0.2,
    item: float = 0.3,
    tail: float = 0.1,
    ramp: int = 500,
    mixer: str | None = None,
) -> dict[str, Any]:
    """The fields of a `ModelConfig`: what is learned beside the next item goes with any mixer.

    Args:
        vocab: Number of items, with the one that is not known.
        depth: Blocks.
        heads: Of the attention; the paper's own is a mixture with what times say.
        length: Positions: so many of the newest items are read.
        dropout: As in `sasrec`.
        loss: As in `sasrec`; the paper's is binary.
        negatives: As in `sasrec`.
        place: Of the norms.
        sequence: Weight of the sequence branch.
        item: Weight of the item branch, of items taken often.
        tail: Weight of the item branch, of the others.
        ramp: Steps until what is hard counts in full.
        mixer: Instead of attention; then without positions, over the whole history.
    """
    options = {"sequence": sequence, "item": item, "tail": tail, "ramp": ramp}
    head = EnhancedItem(vocab=vocab, bias=False, loss=loss, negatives=negatives, **options)  # type: ignore[arg-type]
    layer = ATTENTION.format(heads=heads, drop=dropout, more="")
    return _transformer(layer, mixer, depth, length, dropout, place) | {"head": head}


def _transformer(
    layer: str, mixer: str | None, depth: int, length: int, dropout: float, place: str
) -> dict[str, Any]:
    fields: dict[str, Any] = {"positions": length, "initial_std": 0.02}
    return {
        "layers": f"({layer if mixer is None else mixer})*{depth}",
        "mlp": "gelu",
        "mlp_ratio": 4.0,
        "norm": "layer",
        "norm_eps": 1e-12,
        "norm_place": place,
        "dropout": dropout,
        "embedding_norm": True,
        "embedding_dropout": dropout,
        "embedding_scale": 1.0,
        "tie": True,
        **(fields if mixer is None else {}),
    }


PRESETS: Mapping[str, Callable[..., dict[str, Any]]] = MappingProxyType(
    {"bert4rec": bert4rec, "sasrec": sasrec, "sigma": sigma, "unirec": unirec}
)
TIMED = ("unirec",)
"""Presets that read times."""


def is_preset(layers: str) -> bool:
    """Whether this names one of PRESETS, with options or without."""
    return layers.split("[", 1)[0].strip() in PRESETS


def with_clock(layers: str | None, options: DataOptions | None) -> DataOptions | None:
    """The options of the data, with times to read if the layers want them and nothing was said."""
    if layers is None or layers.split("[", 1)[0].strip() not in TIMED:
        return options
    options = options or DataOptions()
    return replace(options, clock="yes") if options.clock == "auto" else options


def read_preset(layers: str, vocab: int) -> dict[str, Any]:
    """The fields of a `ModelConfig`; unknown options are errors."""
    found = parse_with(dict, layers)
    if len(found) != 1:
        raise ValueError(f"layers {layers!r}: a preset stands alone; depth=N repeats its blocks")
    options = found[0]
    name = options.pop("name")
    known = inspect.signature(PRESETS[name]).parameters
    for key in options:
        lookup({k: v for k, v in known.items() if k != "vocab"}, key, kind=f"option of {name}")
    return PRESETS[name](vocab, **options)
