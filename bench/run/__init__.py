"""The benchmark: what is asked, of which models, in which processes, in which order."""
