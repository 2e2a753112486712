"""Results to one self-contained HTML page, figures and tables; never imports torch or transformers."""

from instil.report.page import render
from instil.report.study import Study, read_study
from instil.report.study_page import Format, render_study, write_study

__all__ = ["Format", "Study", "read_study", "render", "render_study", "write_study"]
