"""Healing: a pruned student learns from its teacher. Options, objectives, sampled conversations, and the run itself."""
