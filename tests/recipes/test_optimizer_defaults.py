import inspect
from pathlib import Path

import optax
import pytest
from optax import contrib

from jaxcnn.optim.named import find_factory
from jaxcnn.recipes import optimizer_defaults

USABLE = [name for name, defaults in optimizer_defaults.OPTIMIZERS.items() if not defaults.refused]

# Everything in optax that returns a transformation and is no optimizer by itself.
PARTS = {
    "adaptive_grad_clip", "add_decayed_weights", "add_noise", "apply_every", "apply_if_finite",
    "centralize", "chain", "clip", "clip_by_block_rms", "clip_by_global_norm",
    "conditionally_mask", "conditionally_transform", "differentially_private_aggregate", "ema",
    "flatten", "freeze", "hutchinson_estimator_diag_hessian", "identity",
    "inject_hyperparams", "inject_stateful_hyperparams", "keep_params_nonnegative", "masked",
    "measure_with_ema", "multi_transform", "named_chain", "normalize", "normalize_by_update_norm",
    "partition", "scale", "selective_transform", "set_to_zero", "snapshot",
    "split_real_and_imaginary", "stateless", "stateless_with_tree_map", "trace",
    "with_extra_args_support", "zero_nans",
}  # fmt: skip


# What jaxcnn has beyond optax.
OWN = {"soap"}


def test_every_optimizer_of_optax_is_there() -> None:
    found = set()
    for module in (optax, contrib):
        for name, value in vars(module).items():
            if not callable(value) or inspect.isclass(value):
                continue
            if name.startswith(("_", "scale_by_")):
                continue
            try:
                signature = inspect.signature(value)
            except ValueError:
                continue
            returned = str(signature.return_annotation)
            if "GradientTransformation" in returned or "learning_rate" in signature.parameters:
                found.add(name)
    assert (found - PARTS) | OWN == set(optimizer_defaults.OPTIMIZERS)
    assert not found & OWN


def test_the_defaults_are_those_of_the_documentation() -> None:
    page = (Path(__file__).parents[2] / "docs" / "optimizers.md").read_text()
    rows = [line.strip("| ").split(" | ")[:3] for line in page.splitlines() if line[:2] == "| "]
    assert rows[2:] == [  # below the heads
        [name, f"{defaults.learning_rate:g}", f"{defaults.weight_decay:g}"]
        for name, defaults in optimizer_defaults.OPTIMIZERS.items()
        if not defaults.refused
    ]


def test_what_else_an_optimizer_brings() -> None:
    brought = {
        name: {**defaults.args, **defaults.recipe}
        for name, defaults in optimizer_defaults.OPTIMIZERS.items()
        if defaults.args or defaults.recipe
    }
    constant = {"schedule": "constant", "warmup": 0.0}
    assert brought == {
        # With that of optax, 1e-16, a weight whose gradients were zero takes a step without bound.
        "acprop": {"eps": 1e-3},
        "ademamix": {"alpha": 2.0, "b3": 0.999},  # optax's are for runs of 100,000 steps and more
        "dog": {"init_step": ("heuristic", 1e-3)},
        "galore": {"rank": 32},
        "lbfgs": constant,
        "noisy_sgd": {"eta": 1e-4},
        "reduce_on_plateau": constant,
        "rmsprop": {"decay": 0.99, "momentum": 0.0},  # PyTorch's
        "rprop": constant,
        "schedule_free": constant,
        "schedule_free_adamw": constant,
        "schedule_free_sgd": constant,
        "sgd": {"nesterov": True},
    }


@pytest.mark.parametrize("name", USABLE)
def test_the_table_agrees_with_the_signatures(name: str) -> None:
    """Schedules are passed to those that take one, decays to those that have a parameter for it."""
    defaults = optimizer_defaults.get(name)
    parameters = inspect.signature(find_factory(name)).parameters
    rate = parameters.get("learning_rate") or parameters["max_learning_rate"]
    assert (defaults.schedule == "passed") == ("Callable" in str(rate.annotation))
    if defaults.decay != "argument":
        assert "weight_decay" in parameters
        assert "mask" not in parameters


def test_names() -> None:
    assert optimizer_defaults.get("sgd").learning_rate == 0.05
    own = optimizer_defaults.Defaults(1e-3, 0.0, {}, {}, "scaled", "argument", "")
    assert optimizer_defaults.get("my.module:make") == own
    for name in ("adamW", "optax.adamw"):
        with pytest.raises(ValueError, match=rf"got '{name}' \(did you mean adamw\?\)"):
            optimizer_defaults.get(name)
    with pytest.raises(ValueError, match=r"got 'admw' \(did you mean adamw\?\)"):
        optimizer_defaults.get("admw")
    with pytest.raises(ValueError, match="cannot be dpsgd: it needs a gradient for every image"):
        optimizer_defaults.get("dpsgd")
