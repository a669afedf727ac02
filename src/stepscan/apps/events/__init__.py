"""Events: judge, predict, stream."""
