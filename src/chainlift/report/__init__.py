"""Result files in, figures and one self-contained HTML page out; knows no experiment, only result files."""

from chainlift.report.page import write_report
from chainlift.report.tables import result_tables

__all__ = ["result_tables", "write_report"]
