"""Data in order, of any kind, as packed sequences and batches with resets."""

from stepscan.data.base import PARTS, Batch, DataError, DataOptions, Dataset, Packed, Schema
from stepscan.data.batches import draw, gather, places, walk
from stepscan.data.files import read_table
from stepscan.data.named import NAMED
from stepscan.data.open import KINDS, open_dataset, read_schema
from stepscan.data.tables import Table

__all__ = [
    "KINDS",
    "NAMED",
    "PARTS",
    "Batch",
    "DataError",
    "DataOptions",
    "Dataset",
    "Packed",
    "Schema",
    "Table",
    "draw",
    "gather",
    "open_dataset",
    "places",
    "read_schema",
    "read_table",
    "walk",
]
