"""Quantization of GPT-2's weights: the arithmetic that decides every integer, and the checkpoint that holds them."""
