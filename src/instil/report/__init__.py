"""Reports of finished runs and studies: an HTML page, figures and tables.

This package never imports torch or transformers.
"""

from instil.report.page import Format, render, write_report, write_study
from instil.report.read import Study, read_study

__all__ = ["Format", "Study", "read_study", "render", "write_report", "write_study"]
