"""The model that is being compressed: data set, fine-tuning, full-precision generator, scores, and checkpoints."""
