"""Where installed packages keep the data sets that they bring."""

from importlib.util import find_spec
from pathlib import Path

EXAMPLES = "pip install 'stepscan[examples]'"


def folder_of(module: str, *, package: str | None = None, command: str = EXAMPLES) -> Path:
    """The folder of a package with data, without importing it.

    Raises:
        ImportError: It is not installed; `command` installs `package`, whose module this is.
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ImportError(f"this data set is in the package {package or module}: {command}")
    return Path(spec.origin).parent
