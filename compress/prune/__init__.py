"""Structured pruning of GPT-2: choose a shape, rank the units, slice them out, heal what is left."""
