"""Quality: likelihood, divergence, intervals, and statistics of replies."""
