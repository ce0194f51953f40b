"""The decoder graph: a family of models each in its file, on common layers, inputs and outputs."""
