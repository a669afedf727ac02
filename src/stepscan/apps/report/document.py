"""One HTML file that needs nothing else, written whole or not at all."""

import os
from collections.abc import Sequence
from pathlib import Path

from stepscan.apps.report.markup import Markup, join, text

STYLE = Path(__file__).with_name("style.css")
# Nothing may run or be fetched, whatever the results contain.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, body: Sequence[Markup]) -> Markup:
    """The page around what it says."""
    head = (
        '<meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{text(title)}</title>"
        f"<style>{STYLE.read_text()}</style>"
    )
    content = f'<html lang="en"><head>{head}</head><body>{join(*body)}</body></html>'
    return Markup(f"<!doctype html>\n{content}\n")


def write_page(content: str, path: Path) -> Path:
    """Under another name first, then renamed."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("xb") as file:
            file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path
