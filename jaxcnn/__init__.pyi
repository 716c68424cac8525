from .cli.progress import progress_bar as progress_bar
from .data.dataset import Dataset as Dataset, Split as Split, load_data as load_data
from .data.own_data import load_own as load_own
from .errors import UserError as UserError
from .networks.cnn import Cifar10CNN as Cifar10CNN, MnistCNN as MnistCNN
from .optim.factory import make_optimizer as make_optimizer
from .recipes.named import recipe as recipe
from .recipes.recipe import Recipe as Recipe
from .train.early_stopping import EarlyStopping as EarlyStopping
from .train.ensemble import fit_many as fit_many
from .train.many_result import ManyResult as ManyResult
from .train.members import grid as grid
from .train.fit import fit as fit
from .train.result import Observer as Observer, Result as Result
from .train.state import TrainState as TrainState, init_state as init_state
from .train.step_log import StepValues as StepValues
from .train.steps import make_eval_step as make_eval_step, make_train_step as make_train_step

__version__: str
