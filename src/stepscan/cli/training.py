"""How a command that trains ends: what it prints, and its exit code."""

import json
import sys
from collections.abc import Callable

from stepscan.apps.fit import StoppedError
from stepscan.apps.model import Model
from stepscan.cli import FAILED
from stepscan.train.loop import DivergedError


def end(train: Callable[[], Model], *, as_json: bool, quiet: bool) -> int:
    """Train; a run that was stopped or diverged is one line."""
    try:
        model = train()
    except StoppedError as stop:
        if not quiet:
            print(f"stepscan: {stop}", file=sys.stderr)
        return stop.code
    except DivergedError as error:
        print(f"stepscan: {error}", file=sys.stderr)
        return FAILED
    if as_json:
        print(json.dumps(model.about, indent=2))
    return 0
