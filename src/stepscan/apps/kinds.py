"""Every kind of data, by name."""

from collections.abc import Mapping
from types import MappingProxyType

from stepscan.apps.domain import Domain
from stepscan.apps.events.domain import Events
from stepscan.apps.interactions.domain import Interactions
from stepscan.apps.item_texts.domain import ItemTexts
from stepscan.apps.labelled.domain import Labelled
from stepscan.apps.responses.domain import Responses
from stepscan.apps.series.domain import Series
from stepscan.apps.text.domain import Text
from stepscan.data.base import Dataset
from stepscan.names import lookup

DOMAINS: Mapping[str, type[Domain]] = MappingProxyType(
    {
        domain.kind: domain
        for domain in (Text, Series, Events, Interactions, ItemTexts, Responses, Labelled)
    }
)


def domain_of(dataset: Dataset) -> Domain:
    """The domain of a data set."""
    return lookup(DOMAINS, dataset.kind, kind="kind of data")(dataset)
