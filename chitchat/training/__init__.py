"""Fine-tuning, made exact: a plan fixed before the first step, batches as a function of it, a work folder to resume."""
