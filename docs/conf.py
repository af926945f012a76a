"""The documentation: Markdown pages, the notebooks, and what is generated from the declarations in the code.

Build it with ``python -m pip install -e ".[docs]"`` and ``python -m sphinx -W --keep-going -b html docs docs/_build/html``.
Nothing is fetched while building or reading. ``REFMOTION_DOCS_EXECUTE=1`` runs the notebooks, so that pages show what
they print and draw (interactive plots load BokehJS from where HoloViews says); otherwise they are shown as they are stored.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))  # the package beside these pages, whichever else is installed
sys.path.insert(0, str(HERE))

import pages

import refmotion_nb

project = "refmotion_nb"
author = "the authors of refmotion_nb"
copyright = "the authors of refmotion_nb, BSD 3-Clause licence"
version = release = refmotion_nb.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
]
exclude_patterns = [
    "_build",
    "**/.ipynb_checkpoints",
    "**/refmotion-*",
    "reference/result_tables.md",
    "jupyter_execute",
]

smartquotes_action = "qe"  # options are written with two dashes
myst_enable_extensions = ["dollarmath", "amsmath", "deflist", "colon_fence", "attrs_block", "attrs_inline"]
myst_heading_anchors = 3
myst_dmath_double_inline = True

nb_execution_mode = "force" if os.environ.get("REFMOTION_DOCS_EXECUTE", "") not in ("", "0") else "off"
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_execution_in_temp = False  # all notebooks find the one example
nb_execution_show_tb = True
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type"]  # what HoloViews adds for JupyterLab alone

# one file with its glyphs in it, from the package: pages must work without a network
_MATHJAX = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax" / "tex-svg.js"
mathjax_path = "mathjax/tex-svg.js"
mathjax3_config = {
    "tex": {"tags": "none"},
    "options": {"enableMenu": False},
    "svg": {"fontCache": "local", "scale": 0.93},
}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_use_type_comments = False
python_use_unqualified_type_names = True
add_module_names = False
napoleon_google_docstring = False
napoleon_use_rtype = False
maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = f"refmotion_nb {version}"
html_static_path = ["_static"]
html_css_files = ["drawn.css", "site.css"]
html_context = {"default_mode": "auto"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "logo": {"text": "refmotion_nb"},
    "navbar_align": "left",
    "navbar_end": ["theme-switcher"],
    "header_links_before_dropdown": 7,
    "secondary_sidebar_items": ["page-toc"],
    "show_toc_level": 2,
    "footer_start": ["copyright"],
    "footer_end": [],
    "navigation_with_keys": False,
    "back_to_top_button": False,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
html_sidebars = {"changelog": [], "glossary": [], "index": []}


def setup(app):
    """Bring in what stands elsewhere, and generate what follows from the code."""
    pages.write(HERE)
    app.connect("builder-inited", add_static_files)
    app.connect("autodoc-process-signature", pages.short_signature)
    app.connect("doctree-resolved", pages.with_dashes)
    app.connect("autodoc-skip-member", pages.skip_parameters)
    app.connect("autodoc-process-docstring", pages.with_parameters)


def add_static_files(app):
    """Put MathJax and the style of figures beside the theme's files."""
    static = Path(app.outdir) / "_static"
    pages.copy_if_changed(_MATHJAX, static / mathjax_path)
    pages.write_text(static / "drawn.css", pages.drawn_css(HERE))
