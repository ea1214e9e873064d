"""How the site is built, from the repository's root: ``python -m sphinx -W docs docs/_build/html``.

The code cells of the pages and the notebooks of ``examples/`` run while the site is built, against
the cnnx that is installed; a cell that raises stops the build. So every number and picture on the
site is what this version computes. Nothing is fetched: formulas become MathML, the theme brings its
files, and there are no links into other projects' indexes to resolve.
"""

import importlib.metadata
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.append(str(HERE / "_ext"))

project = "cnnx"
author = "The cnnx authors"
project_copyright = author
version = release = importlib.metadata.version("cnnx")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_nb", "mathml"]
templates_path = ["_templates"]
exclude_patterns = ["_build", "pictures"]
nitpicky = True  # a reference that leads nowhere is a warning, and -W makes it an error
# But not a word in single backticks: it becomes a link where there is something to link to.
nitpick_ignore_regex = [("py:obj", r"\w+")]

# Sphinx reads no files outside its folder.
shutil.copytree(HERE.parent / "examples", HERE / "examples", dirs_exist_ok=True)

# ---------------------------------------------------------------- text and code cells

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_merge_streams = True

# ---------------------------------------------------------------- reference

default_role = "autolink"
autosummary_generate = True
autosummary_generate_overwrite = True
autodoc_typehints = "none"  # the docstrings say it in words
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # the class template lists them
numpydoc_class_members_toctree = False

# ---------------------------------------------------------------- looks

html_theme = "furo"
html_title = f"cnnx {version}"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["cnnx.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
