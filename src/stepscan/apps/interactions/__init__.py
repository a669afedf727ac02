"""Interactions: judge, recommend, stream."""
