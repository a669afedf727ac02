"""Checkpoints from elsewhere become models: see `stepscan.models.imports`."""

import os
from pathlib import Path

from stepscan.apps.model import Model
from stepscan.data.tokens import TokenSchema, check_tokenizer
from stepscan.models import save_folder
from stepscan.models.imports import Settings, read_checkpoint

TOKENIZER = "tokenizer.json"
LARGEST_TOKENIZER = 128 << 20  # bytes


def import_checkpoint(folder: str | os.PathLike[str], out: str | os.PathLike[str]) -> Model:
    """Read a Hugging Face checkpoint and leave it as a model folder, whole or not at all.

    Args:
        folder: With config.json and safetensors; nothing is fetched. A tokenizer.json in it comes
            with the model: as part of it, and as a file beside it for others to use.
        out: The model folder; there must be none yet.

    Raises:
        ValueError: the checkpoint cannot be imported, or `out` is there already; in one line.
    """
    folder, out = Path(folder), Path(out)
    if out.exists() or out.is_symlink():
        raise ValueError(f"{out}: is there already; choose another --out")
    tokenizer = _tokenizer(folder)
    network, settings = read_checkpoint(folder)
    (size,) = network.config.tokens
    first, ends = (_ids(settings, key, size) for key in ("bos_token_id", "eos_token_id"))
    schema = TokenSchema(
        size=size,
        tokenizer=None if tokenizer is None else tokenizer.decode(),
        first=first[0] if first else None,
        ends=ends,
    )
    about = {"imported": str(folder.absolute()), "model_type": settings.values["model_type"]}
    extra = {"schema": schema.to_dict(), "about": about}
    files = {} if tokenizer is None else {TOKENIZER: tokenizer}
    save_folder(network, out, extra=extra, files=files)
    return Model(network, schema, about)


def _tokenizer(folder: Path) -> bytes | None:
    path = folder / TOKENIZER
    if not path.is_file():
        return None
    if path.stat().st_size > LARGEST_TOKENIZER:
        raise ValueError(f"{path}: larger than {LARGEST_TOKENIZER >> 20} MB")
    content = path.read_bytes()
    try:
        check_tokenizer(content.decode())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return content


def _ids(settings: Settings, key: str, size: int) -> tuple[int, ...]:
    """Tokens of a special meaning: one, several or none."""
    value = settings.values.get(key)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(type(i) is not int or not 0 <= i < size for i in ids):
        raise settings.error(f"want {key} from 0 to {size - 1}, got {value!r:.40}")
    return tuple(ids)
