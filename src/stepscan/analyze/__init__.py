"""Inspect and judge what was trained: intervals, later spectra, memory horizons and more."""
