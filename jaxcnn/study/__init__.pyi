from .runs import Run as Run, Study as Study
from .study import StudyObserver as StudyObserver, run_study as run_study
from .comparison import (
    Difference as Difference,
    Summary as Summary,
    differences as differences,
    summarize as summarize,
)
