"""Recipes: the whole way from conversations to a bundle, stage by stage, each run once."""
