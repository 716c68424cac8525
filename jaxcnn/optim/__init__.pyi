from .factory import HYPERPARAMETERS as HYPERPARAMETERS, make_optimizer as make_optimizer
from .named import find_factory as find_factory
from .averages import averaged as averaged, eval_params as eval_params
from .frozen import frozen as frozen, frozen_paths as frozen_paths
from .schedules import make_schedule as make_schedule
