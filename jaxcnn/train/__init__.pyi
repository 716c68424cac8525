from .early_stopping import EarlyStopping as EarlyStopping
from .result import EpochRecord as EpochRecord, Observer as Observer, Result as Result
from .state import TrainState as TrainState, init_state as init_state
from .step_log import StepValues as StepValues
from .steps import (
    make_eval_step as make_eval_step,
    make_predict as make_predict,
    make_train_step as make_train_step,
)
from .many_result import ManyResult as ManyResult
from .ensemble import (
    fit_chunks as fit_chunks,
    fit_many as fit_many,
)
from .trained import Trained as Trained, load_trained as load_trained
from .members import Members as Members, grid as grid
