"""The result of a benchmark as files: a table for spreadsheets, pictures, and one page that explains itself."""

from __future__ import annotations

from .charts import draw_charts
from .page import write_html
from .spreadsheet import write_csv

__all__ = ["draw_charts", "write_csv", "write_html"]
