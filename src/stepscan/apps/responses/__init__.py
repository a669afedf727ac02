"""Answers to questions (knowledge tracing): judge, ask, review, stream."""
