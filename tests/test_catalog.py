import inspect

import optax
import pytest
from optax import contrib

from jaxcnn import catalog

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
    assert found - PARTS == set(catalog.OPTIMIZERS)


def test_names() -> None:
    assert catalog.get("sgd").learning_rate == 0.05
    assert catalog.get("my.module:make").learning_rate == 1e-3
    with pytest.raises(ValueError, match=r"got 'admw' \(did you mean adamw\?\)"):
        catalog.get("admw")
    with pytest.raises(ValueError, match="cannot be dpsgd: it needs a gradient for every image"):
        catalog.get("dpsgd")
