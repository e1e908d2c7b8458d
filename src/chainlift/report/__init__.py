"""Result files in, figures and one self-contained HTML page out; knows no experiment, only result files."""

from chainlift.report.compare import compare_runs
from chainlift.report.document import Document, document
from chainlift.report.page import write_report
from chainlift.report.paper import write_paper
from chainlift.report.tables import result_tables

__all__ = ["Document", "compare_runs", "document", "result_tables", "write_paper", "write_report"]
