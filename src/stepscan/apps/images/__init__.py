"""Images: judge, classify."""
