"""Text: judge, generate, stream."""
