"""Every optimizer that can be named on a command line, and the hyperparameters it starts from.

This module imports nothing heavy, so that a command line can show its defaults at once. That the
names are all of `optax` and `optax.contrib`, and `jaxcnn.optim.soap`, is asserted in the tests.
"""

import difflib
import re
from dataclasses import dataclass, field
from typing import Any, Literal

_DOTTED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Defaults:
    """What a recipe takes over when it is given this optimizer, and how it is made.

    Attributes:
        learning_rate: per step, at its peak.
        weight_decay: of kernels.
        args: further arguments of the optimizer.
        recipe: further fields of the recipe.
        schedule: how it follows the schedule of the learning rate. "passed": it is called with the
            schedule as its learning rate. "scaled": it takes a number only, so it is called with
            the peak and its updates are scaled. "refused": it replaces a schedule.
        decay: where the weight decay goes. "argument": to the optimizer, if it has such a
            parameter, and for the kernels alone; else it is added to the gradient. "gradient":
            added to the gradient anyway, as the optimizer estimates one step size for all
            parameters, so it cannot be partitioned, and takes no mask. "separate": the same, and
            the parameter of that name is something else, which `args` may set.
        refused: why it cannot be used with these networks; empty if it can.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    args: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    schedule: Literal["passed", "scaled", "refused"] = "passed"
    decay: Literal["argument", "gradient", "separate"] = "argument"
    refused: str = ""


# Schedules would fight with what these do themselves.
_CONSTANT = {"schedule": "constant", "warmup": 0.0}

# Starting points at batch sizes around 100. Those of sgd, adam, adamw, lion, muon and rmsprop were
# found by short runs of both networks, the others follow their papers and tests/conformance.py.
OPTIMIZERS: dict[str, Defaults] = {
    "acprop": Defaults(4e-3, args={"eps": 1e-3}),
    "adabelief": Defaults(2e-3),
    "adadelta": Defaults(1.0),
    "adafactor": Defaults(1e-2),
    "adagrad": Defaults(2e-2),
    "adam": Defaults(2e-3),
    "adamax": Defaults(4e-3),
    "adamaxw": Defaults(4e-3, 0.02),
    "adamw": Defaults(2e-3, 0.02),
    "adan": Defaults(2e-3, 0.02),
    "ademamix": Defaults(2e-3, args={"alpha": 2.0, "b3": 0.999}),
    "adopt": Defaults(2e-3),
    "amsgrad": Defaults(2e-3),
    "cocob": Defaults(1.0),
    "dadapt_adamw": Defaults(1.0, decay="gradient"),
    "dog": Defaults(1.0, args={"init_step": ("heuristic", 1e-3)}),
    "dowg": Defaults(1.0),
    "dpsgd": Defaults(refused="it needs a gradient for every image, and a step has one for all"),
    "fromage": Defaults(1e-2),
    "galore": Defaults(1e-2, args={"rank": 32}),
    "lamb": Defaults(2e-2, 0.02),
    "lars": Defaults(2.0, 5e-4),
    "lbfgs": Defaults(1.0, recipe=_CONSTANT),
    "lion": Defaults(2e-4, 0.1),
    "lookahead": Defaults(0.05, 5e-4),
    "madgrad": Defaults(2e-3),
    "mechanize": Defaults(0.05, decay="separate"),
    "momo": Defaults(1.0, decay="gradient"),
    "momo_adam": Defaults(5e-3, decay="gradient"),
    "muon": Defaults(5e-3, 0.02),
    "nadam": Defaults(2e-3),
    "nadamw": Defaults(2e-3, 0.02),
    "noisy_sgd": Defaults(0.05, args={"eta": 1e-4}),
    "novograd": Defaults(1e-2),
    "optimistic_adam": Defaults(1e-3, schedule="scaled"),
    "optimistic_adam_v2": Defaults(1e-3),
    "optimistic_gradient_descent": Defaults(0.05),
    "polyak_sgd": Defaults(0.1, schedule="scaled"),
    "prodigy": Defaults(1.0, decay="gradient"),
    "radam": Defaults(2e-3),
    "reduce_on_plateau": Defaults(0.05, 5e-4, recipe=_CONSTANT),
    "rmsprop": Defaults(5e-4, args={"decay": 0.99}, recipe={"momentum": 0.0}),
    "rprop": Defaults(1e-4, recipe=_CONSTANT, schedule="scaled"),
    "sam": Defaults(0.05, 5e-4),
    "schedule_free": Defaults(0.5, recipe=_CONSTANT),
    "schedule_free_adamw": Defaults(5e-3, recipe=_CONSTANT, schedule="refused"),
    "schedule_free_sgd": Defaults(0.5, recipe=_CONSTANT, schedule="refused"),
    "sgd": Defaults(0.05, 5e-4, recipe={"nesterov": True}),
    "sign_sgd": Defaults(2e-4),
    "signum": Defaults(2e-4),
    "simplified_ademamix": Defaults(2e-5),
    "sm3": Defaults(0.05, schedule="scaled"),
    "soap": Defaults(6e-3, 0.02),
    "sophia": Defaults(2e-3, 0.02),
    "yogi": Defaults(5e-3),
}

# These estimate their step size; what they call the learning rate is a factor of it.
ESTIMATING = frozenset(
    ("cocob", "dadapt_adamw", "dog", "dowg", "lbfgs", "mechanize", "polyak_sgd", "prodigy")
)

_trusted: set[str] = set()


def is_own(name: str) -> bool:
    """Whether a name has the form of a user-defined optimizer, "module:factory"."""
    return _DOTTED.fullmatch(name) is not None


def trust(name: str) -> None:
    """Allows a user-defined optimizer to be imported.

    Only the command line and Python code may allow it: that a file names it is not enough.

    Args:
        name: "module:factory".
    """
    _trusted.add(name)


def is_trusted(name: str) -> bool:
    """Whether an optimizer may be imported: `trust` was called with its name."""
    return name in _trusted


def get(name: str) -> Defaults:
    """Returns the defaults of an optimizer of optax, or of a user-defined "module:factory".

    Raises:
        ValueError: there is none of that name, or it cannot be used.
    """
    if is_own(name):
        return Defaults(schedule="scaled")  # any function of a number can be
    if name not in OPTIMIZERS:
        bare = name.lower().rpartition(".")[2]  # for example of optax.adamW
        near = difflib.get_close_matches(bare, OPTIMIZERS, n=1)
        meant = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(
            "optimizer takes the name of one in optax or optax.contrib, or module:factory for your "
            f"own, got {name!r}{meant}"
        )
    if refused := OPTIMIZERS[name].refused:
        raise ValueError(f"optimizer cannot be {name}: {refused}")
    return OPTIMIZERS[name]
