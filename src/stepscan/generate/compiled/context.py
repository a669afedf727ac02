"""What the rules share: the instructions so far, and where numbers really lie."""

from collections.abc import Callable
from dataclasses import dataclass, field

from stepscan.generate.compiled.builder import Builder
from stepscan.generate.compiled.memory import Buffer, Place
from stepscan.generate.compiled.trace import Step

Rule = Callable[..., None]
"""(context, places of the results, *arguments, **options) as of the operation in torch."""


@dataclass(eq=False)
class Context:
    """The first argument of every rule."""

    steps: list[Step]
    dtype: str
    """Of the weights of matrix products."""
    builder: Builder = field(default_factory=Builder)
    at: int = 0
    """The step that is being worked on."""
    done: set[int] = field(default_factory=set)
    """Steps that an earlier instruction has taken along."""
    cats: dict[Buffer, list[tuple[int, int, Place]]] = field(default_factory=dict)
    """Of a buffer put together from parts: their bytes, and where they came from."""

    def look(self, place: Place) -> Place:
        """The same numbers, where they came from: behind copies, and in the parts of a `cat`."""
        while place.buffer.inside is not None:
            buffer, offset = place.buffer.inside
            steps = offset // place.dtype.itemsize
            place = place._replace(buffer=buffer, offset=place.offset + steps)
        low, high = place.span
        for start, end, source in self.cats.get(place.buffer, ()):
            if start <= low and high <= end and source.dtype == place.dtype:
                steps = source.offset - start // place.dtype.itemsize
                found = place._replace(buffer=source.buffer, offset=place.offset + steps)
                return self.look(found)
        return place
