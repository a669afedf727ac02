"""Simple methods that a trained model has to beat."""
