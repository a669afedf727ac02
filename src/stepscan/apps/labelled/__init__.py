"""Sequences with one label each: judge, classify, measure, transcribe."""
