"""One interface to any loaded model, and the runtimes of our own kinds of model."""
