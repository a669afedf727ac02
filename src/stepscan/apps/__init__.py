"""Recipes: what the commands do, from data to a model, a table and a report."""
