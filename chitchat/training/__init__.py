"""Fine-tuning that can be resumed exactly: a plan made before the first step, batches that depend on it, a work
folder."""
