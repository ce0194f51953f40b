"""YAML pipelines for `compress run`, found as package data; the form is described in compress/recipe.py."""
