"""The model that is being compressed: corpora, tokenizers, dialogue format, data set, fine-tuning, generator, checkpoints."""
