"""Settings of Sphinx for the site: notebooks as they are stored, and the API from its docstrings."""

project = "attnlib: attention, worked by hand"
author = "the attnlib authors"
copyright = "the attnlib authors; code MIT, text and pictures CC BY 4.0"
language = "en"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
html_theme = "sphinx_book_theme"
html_title = "Attention, worked by hand"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}

nb_execution_mode = "off"  # what is stored is what was checked
nb_render_markdown_format = "myst"
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
napoleon_custom_sections = [("Formula", "returns_style")]
napoleon_use_rtype = False
napoleon_use_ivar = True
