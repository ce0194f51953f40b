"""Measuring: latency, memory and quality of any model, side by side in one table."""
