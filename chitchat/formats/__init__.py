"""Readers of checkpoints, configurations and tokenizers of other tools and older versions."""
