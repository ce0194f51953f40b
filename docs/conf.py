"""Sphinx settings of the site: `make docs` writes docs/_build/html, offline, and a warning is an error."""

import sys
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

project = "chitchat-compress"
author = "the authors of chitchat-compress"
version = release = metadata.version("chitchat-compress").partition("+")[0]

extensions = ["myst_parser", "sphinx.ext.autodoc", "generated"]
exclude_patterns = ["_build", "_ext"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = "chitchat-compress"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False

# Docstrings are plain text with names in single backticks.
default_role = "code"
smartquotes = False  # they would make one dash of the two before an option
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
# A name of ours that cannot be found is an error; those of other libraries are looked up on the network, which a
# build does without.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!chitchat_compress\b).*")]
