"""How Sphinx builds these pages: `make docs` writes them to build/docs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import consilium.common

project = "consilium"
copyright = "the authors of consilium; Apache-2.0"
release = consilium.common.__version__

extensions = ["myst_parser"]
exclude_patterns = ["Thumbs.db"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may begin below the first level where another includes it

pygments_dark_style = "monokai"

html_theme = "furo"
html_title = "consilium"
html_static_path = ["_static"]
html_css_files = ["consilium.css"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5d7a", "color-brand-content": "#0b5d7a"},
    "dark_css_variables": {"color-brand-primary": "#7cc4df", "color-brand-content": "#7cc4df"},
}

linkcheck_timeout = 20
