"""What the world writes, read into our form: checkpoints of any age and layout, their configurations and tokenizers."""
