"""Making the model smaller: structured pruning, healing by distillation, quantization; and `cli`, the front door."""
