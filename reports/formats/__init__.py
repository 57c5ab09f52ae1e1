"""The file formats, as one Markdown page made from the schemas that read them."""

from reports.formats.page import formats_page

__all__ = ["formats_page"]
