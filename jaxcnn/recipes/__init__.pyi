from .recipe import (
    Recipe as Recipe,
    NetworkName as NetworkName,
    RecipeName as RecipeName,
    ScheduleName as ScheduleName,
    AugmentName as AugmentName,
    InitializationName as InitializationName,
    recipe_from_dict as recipe_from_dict,
)
from .named import RECIPES as RECIPES, load_recipe as load_recipe
from .optimizer_defaults import OPTIMIZERS as OPTIMIZERS, Defaults as Defaults, trust as trust
from .problems import CIFAR10 as CIFAR10, MNIST as MNIST, PROBLEMS as PROBLEMS, Problem as Problem
