"""The report of a comparison: `write` makes the page, `leaderboard` the table for a terminal."""

from stepscan.apps.report.page import write
from stepscan.apps.report.text import leaderboard, opening

__all__ = ["leaderboard", "opening", "write"]
