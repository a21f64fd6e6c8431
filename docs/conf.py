"""The site; `make docs` builds it.

The source folder of Sphinx is the whole repository, so that the links between files which one can
follow in the repository are those of the site.
"""

from pathlib import Path

import pymc_flows

project = "pymc-flows"
author = "the pymc-flows developers"
project_copyright = author
version = release = pymc_flows.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
]
root_doc = "docs/index"
include_patterns = ["docs/**", "examples/*.ipynb", "benchmarks/results/*.md", "*.md"]
exclude_patterns = [
    *(".*", "build", "docs/_*", "src", "tests"),
    *("README.md", "CODE_OF_CONDUCT.md", "SECURITY.md"),
]
templates_path = [str(Path(__file__).parent / "_templates")]
# What a docstring has in single backticks is a name of this package, if there is one.
default_role = "py:obj"

# The tests run all notebooks; the site shows what is stored in them.
nb_execution_mode = "off"
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False

html_theme = "pydata_sphinx_theme"
html_title = "pymc-flows"
html_theme_options = {"navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_extra_path = ["_root"]
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
