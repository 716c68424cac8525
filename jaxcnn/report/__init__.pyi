from .analysis import Analysis as Analysis
from .page import write_report as write_report
