"""Items as a few codes that are learned from what is known about them, and recommended by spelling.

    z_i = W_e features_i                    residual codes of z: chances [M C] for each item
    x_i = sum_m sum_c chance_mc E_mc        an item as the recommender reads it (a soft identifier)
    h_t = any mixers over x_1 .. x_t
    p(code_m | codes before it, h_t)        a GRU of M steps that starts in h_t
    loss = cross entropy of the codes of the next item + |features - W_d value|^2
           + uniformity * sum_m KL(mean chance of level m | uniform)
           + distillation * KL(teacher | scores of h_t)                        with a teacher

Trained jointly, the tokeniser learns from the recommender too: the temperature of the chances falls
from `tau` to nearly 0, where soft identifiers are the hard ones that `recommend` spells along the
trie of the catalogue. In two stages the tokeniser comes first and stays as it is.
Source: Li et al. 2026, arXiv:2601.17438 (UniGRec): soft identifiers, annealing, uniformity of
codewords, distillation from a collaborative teacher. Deviations: mixers of this library and a small
decoder where there is an encoder-decoder Transformer; an item is one step of the sequence, not M;
features are given, not the embeddings of a language model; only the recommender is distilled into,
by item scores. Schedules and weights there are not known to us in detail: these are ours.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from stepscan.data.base import Batch, Packed
from stepscan.data.batches import draw
from stepscan.generate.constrained import Trie, spelled, trie_beams
from stepscan.layers.projection import Linear
from stepscan.models import Inputs, ModelConfig, Regress, SequenceModel
from stepscan.ops.quantize import Residual, moved_codes, residual_vq
from stepscan.train.optimizer import adamw, set_rate
from stepscan.train.schedule import rate

ROWS = 256  # histories read side by side
Training = Literal["joint", "two stages"]


@dataclass(frozen=True, kw_only=True)
class SemanticConfig:
    """Sizes and weights."""

    layers: str = "gated_delta_net"
    """Layer pattern of the recommender."""
    width: int = 48
    """Model width D, also of the codes."""
    levels: int = 3
    """Codes of an item M."""
    codes: int = 16
    """Codes of a level C."""
    tau: float = 1.0
    """Temperature of the chances at the start."""
    coldest: float = 0.01
    """And at the end."""
    uniformity: float = 1.0
    """Weight of the uniform use of codes."""
    reconstruction: float = 1.0
    """Weight of what codes say about the features."""
    distillation: float = 0.0
    """Weight of a teacher's scores."""
    dropout: float = 0.1
    """Of block outputs."""

    def __post_init__(self) -> None:
        """Reject what cannot be trained."""
        for name in ("width", "levels", "codes"):
            if getattr(self, name) < 1:
                raise ValueError(f"semantic: want {name} >= 1, got {getattr(self, name)}")
        if not 0 < self.coldest <= self.tau:
            raise ValueError(
                f"semantic: want 0 < coldest <= tau, got coldest={self.coldest}, tau={self.tau}"
            )


class SemanticItems(nn.Module):
    """Tokeniser and recommender over a catalogue of V items; item 0 is none.

    Args:
        features: What is known about each item; row i is item i + 1.
        config: Sizes and weights.
    """

    features: Tensor

    def __init__(self, features: Float[Tensor, "V A"], config: SemanticConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("features", features)
        width, (_, known) = config.width, features.shape
        self.encode = Linear(known, width, bias=False)
        self.decode = Linear(width, known)
        self.codes = nn.Parameter(torch.randn(config.levels, config.codes, width) * width**-0.5)
        self.embed = nn.Parameter(torch.randn(config.levels, config.codes, width) * width**-0.5)
        self.reader = SequenceModel(
            ModelConfig(
                head=Regress(outputs=width),
                layers=config.layers,
                width=width,
                reals=width,
                dropout=config.dropout,
            )
        )
        self.speller = nn.GRUCell(width, width)
        self.say = nn.ModuleList(Linear(width, config.codes) for _ in range(config.levels))

    def identify(self, tau: float | None = None) -> Residual:
        """The codes of every item, with their chances at this temperature."""
        return residual_vq(self.encode(self.features), self.codes, tau=tau)

    def read(
        self,
        items: Int[Tensor, "B T"],
        chances: Float[Tensor, "V M C"],
        resets: Tensor | None = None,
    ) -> Float[Tensor, "B T D"]:
        """What histories of items come to."""
        table = torch.einsum("vmc,mcd->vd", chances, self.embed)
        table = torch.cat([table.new_zeros(1, table.shape[1]), table])
        h, _ = self.reader(Inputs(reals=table[items]), None, resets)
        return h

    def spelling_loss(
        self, h: Float[Tensor, "N D"], chances: Float[Tensor, "N M C"]
    ) -> Float[Tensor, ""]:
        """Mean cross entropy of the codes of these items, level by level, each after the true ones
        before it."""
        total = h.new_zeros(())
        for level, say in enumerate(self.say):
            total = total - (chances[:, level] * say(h).log_softmax(-1)).sum(-1).mean()
            h = self.speller(chances[:, level] @ self.embed[level], h)
        return total

    @torch.no_grad()
    def recommend(
        self, h: Float[Tensor, "B D"], trie: Trie, popularity: Float[Tensor, " V"], *, width: int
    ) -> list[list[int]]:
        """Items after each history, likeliest first: only what the trie holds."""

        def step(said: Tensor | None, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple]:  # type: ignore[type-arg]
            h, level = state
            at = int(level[0])
            if said is not None:
                h = self.speller(self.embed[at - 1][said], h)
            return self.say[at](h), (h, level + 1)

        state = h, torch.zeros(len(h), dtype=torch.long)
        found = trie_beams(step, state, trie, batch=len(h), width=width)
        return [[item + 1 for item in row] for row in spelled(trie, found, popularity)]

    def trie(self) -> Trie:
        """Of the hard codes of the catalogue."""
        return Trie(self.identify().codes, self.config.codes)


@torch.no_grad()
def start_codes(model: SemanticItems, seed: int, rounds: int = 10) -> None:
    """Put the codes of each level among what it quantises, by k-means over the catalogue, as the
    tokenisers of generative recommendation begin; codes far from all items would never be chosen.
    """
    rng = torch.Generator().manual_seed(seed)
    left = model.encode(model.features)
    for level in model.codes:
        chosen = torch.randint(len(left), (len(level),), generator=rng)
        if len(left) >= len(level):
            chosen = torch.randperm(len(left), generator=rng)[: len(level)]
        level.copy_(left[chosen])
        for _ in range(rounds):
            level.copy_(moved_codes(level[None], left[None, :, None], decay=0.0)[0])
        left = left - residual_vq(left, level[None]).value


class Curve(NamedTuple):
    """How training went: losses of spelling and of the features, by step."""

    spelling: list[float]
    features: list[float]


def train_semantic(
    model: SemanticItems,
    packed: Packed,
    *,
    steps: int,
    how: Training = "joint",
    first: int | None = None,
    rows: int = 32,
    length: int = 32,
    learning_rate: float = 4e-3,
    seed: int = 0,
    teacher: SequenceModel | None = None,
    start: bool = True,
) -> Curve:
    """Train on histories of items, in place.

    Args:
        model: Over the same items as the data.
        packed: The training part of interactions.
        steps: Of the recommender.
        how: Both together, or the tokeniser first.
        first: Steps of the tokeniser in two stages; as many as `steps` if left out.
        rows: Histories a batch.
        length: Items of each.
        learning_rate: Peak of the schedule.
        seed: Of the batches.
        teacher: Whose item scores are learned from, where `distillation` is above 0.
        start: Put the codes among the items first, see `start_codes`; not where training goes on.
    """
    if start:
        start_codes(model, seed)
    if how == "two stages":
        _train_tokeniser(model, steps if first is None else first, learning_rate)
    held = (model.encode.weight, model.codes, *model.decode.parameters())
    for p in held:
        p.requires_grad_(how == "joint")
    frozen = model.identify() if how == "two stages" else None
    optimizer = adamw(model, learning_rate=learning_rate, weight_decay=0.1, betas=(0.9, 0.95))
    curve = Curve([], [])
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for step in range(steps):
            set_rate(optimizer, rate(step / steps, warmup=0.05, floor=0.1))
            batch = draw(packed, step, rows=rows, length=length, seed=seed)
            said = model.identify(_tau(model, step / steps)) if frozen is None else frozen
            loss, spelling = _step(model, batch, said, teacher)
            error = _error(model, said)
            if frozen is None:
                loss = loss + _tokeniser_loss(model, said, error)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            curve.spelling.append(float(spelling))
            curve.features.append(float(error.detach()))
    for p in held:
        p.requires_grad_(True)
    model.eval()
    return curve


@torch.no_grad()
def recommended(
    model: SemanticItems, packed: Packed, popularity: Float[Tensor, " V"], *, width: int = 20
) -> tuple[list[list[int]], Int[Tensor, " U"]]:
    """Of every user with a question: the items found by beams, and the one that came."""
    assert packed.tokens is not None
    chances, trie = model.identify().chances, model.trie()
    wanted = packed.targets_at(packed.begins + packed.lengths - 1)["token"]
    asked = (wanted >= 0).nonzero()[:, 0]
    found: dict[int, list[int]] = {}
    for size in packed.lengths[asked].unique().tolist():  # histories of one length side by side
        for users in asked[packed.lengths[asked] == size].split(ROWS):
            at = packed.begins[users, None] + torch.arange(size)
            h = model.read(packed.tokens[at, 0].long(), chances)[:, -1]
            offered = model.recommend(h, trie, popularity, width=width)
            found |= dict(zip(users.tolist(), offered, strict=True))
    return [found[user] for user in asked.tolist()], wanted[asked]


def uniformity(chances: Float[Tensor, "V M C"]) -> Float[Tensor, ""]:
    """Sum over the levels of KL(mean chance | uniform): 0 where all codes are used alike."""
    mean = chances.mean(0)
    return (mean * (mean * mean.shape[-1]).clamp_min(1e-12).log()).sum()


def _step(
    model: SemanticItems, batch: Batch, said: Residual, teacher: SequenceModel | None
) -> tuple[Tensor, Tensor]:
    assert batch.tokens is not None
    h = model.read(batch.tokens[..., 0], said.chances, batch.resets)
    asked = batch.targets["token"] > 0
    wanted = batch.targets["token"][asked] - 1
    spelling = model.spelling_loss(h[asked], said.chances[wanted])
    loss = spelling
    if teacher is not None and model.config.distillation:
        with torch.no_grad():
            logits, _ = teacher.eval()(batch.tokens, None, batch.resets)
            aim = logits[asked][:, 1:].softmax(-1)
        table = torch.einsum("vmc,mcd->vd", said.chances, model.embed)
        scores = (h[asked] @ table.T).log_softmax(-1)
        loss = loss + model.config.distillation * F.kl_div(scores, aim, reduction="batchmean")
    return loss, spelling.detach()


def _error(model: SemanticItems, said: Residual) -> Tensor:
    return (model.decode(said.value) - model.features).square().sum(-1).mean()


def _tokeniser_loss(model: SemanticItems, said: Residual, error: Tensor) -> Tensor:
    config = model.config
    return config.reconstruction * error + config.uniformity * uniformity(said.chances)


def _tau(model: SemanticItems, progress: float) -> float:
    """From `tau` to `coldest`, evenly in the logarithm, the last fifth at the coldest."""
    config, share = model.config, min(1.0, progress / 0.8)
    return config.tau * (config.coldest / config.tau) ** share


def _train_tokeniser(model: SemanticItems, steps: int, learning_rate: float) -> None:
    optimizer = adamw(model, learning_rate=learning_rate, weight_decay=0.0, betas=(0.9, 0.95))
    for step in range(steps):
        set_rate(optimizer, rate(step / steps, warmup=0.05, floor=0.1))
        said = model.identify(_tau(model, step / steps))
        loss = _tokeniser_loss(model, said, _error(model, said))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
