"""The file formats, and the answers of `--json`, as Markdown pages made from the schemas."""

from reports.formats.json_page import json_page
from reports.formats.page import formats_page

__all__ = ["formats_page", "json_page"]
