"""Results to one self-contained HTML page; never imports torch or transformers."""

from instil.report.page import render

__all__ = ["render"]
