"""A check of everything that needs a GPU, on a machine that has one and no package registry."""
