from .specification import Study as Study
from .runs import Run as Run
from .study import StudyObserver as StudyObserver, run_study as run_study
from .join import join_studies as join_studies
from .comparison import (
    Difference as Difference,
    Summary as Summary,
    differences as differences,
    summarize as summarize,
)
from .rate_range import RateRange as RateRange, find_rate as find_rate
