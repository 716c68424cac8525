import json
import re
import sys
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from jaxcnn.data.augment import make_normalize
from jaxcnn.deploy import onnx_graph
from jaxcnn.errors import UserError
from jaxcnn.networks import pytorch
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import steps
from jaxcnn.train.setup import make_model
from tests import saved

CIFAR10_HEAD = "Conv BatchNormalization Relu"
OPERATORS = {
    "mnist": "Conv Relu MaxPool Conv Relu MaxPool",
    "cifar10": f"{CIFAR10_HEAD} {CIFAR10_HEAD} Conv Relu BatchNormalization MaxPool "
    f"{CIFAR10_HEAD} AveragePool {CIFAR10_HEAD} MaxPool",
}
# Of logits: float32 leaves 6e-8 of what is summed, in a thousand terms mostly far below one.
ROUNDING = 1e-5

Built = tuple[Recipe, dict[str, Any], bytes]


def build(recipe: Recipe, variables: Any, metadata: dict[str, str]) -> bytes:
    """Builds the graph of a network for its own data set."""
    network: Any = SimpleNamespace(
        recipe=recipe,
        variables=variables,
        image_shape=recipe.image_shape,
        class_names=recipe.class_names,
    )
    return onnx_graph.build_onnx(network, metadata)


@pytest.fixture(scope="module", params=["mnist", "cifar10"])
def built(request: pytest.FixtureRequest) -> Built:
    recipe = named.recipe(request.param, "fast")
    variables = pytorch.load_state_dict(saved.weights(request.param))
    return recipe, variables, build(recipe, variables, {"seed": "0"})


def test_the_graph(built: Built) -> None:
    recipe, _, content = built
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 17)]
    assert model.ir_version == 8
    assert model.producer_name == "jaxcnn"
    assert model.graph.name == f"jaxcnn-{recipe.network}"
    assert {entry.key: entry.value for entry in model.metadata_props} == {"seed": "0"}
    operators = " ".join(node.op_type for node in model.graph.node)
    features = OPERATORS[recipe.network]
    assert operators == f"Cast Div Sub Div Transpose {features} Flatten Gemm Relu Gemm"
    names = [node.name for node in model.graph.node]
    assert names == [
        f"{number:02d}-{operator}" for number, operator in enumerate(operators.split())
    ]
    (images,), (logits,) = model.graph.input, model.graph.output
    for value, name, kind, shape in (
        (images, "image", onnx.TensorProto.UINT8, recipe.image_shape),
        (logits, "logits", onnx.TensorProto.FLOAT, (10,)),
    ):
        batch, *rest = value.type.tensor_type.shape.dim
        assert (value.name, value.type.tensor_type.elem_type, batch.dim_param) == (name, kind, "N")
        assert tuple(dim.dim_value for dim in rest) == tuple(shape)


def test_logits_by_onnx_s_own_evaluator(built: Built) -> None:
    recipe, variables, content = built
    images = saved.images(recipe.network, 2)
    (logits,) = ReferenceEvaluator(content).run(None, {"image": images})
    assert (logits.dtype, logits.shape) == (np.float32, (2, 10))
    expected = saved.exact_logits(recipe, variables, images)
    assert np.ptp(expected, axis=0).max() > 100 * ROUNDING  # the images matter
    np.testing.assert_allclose(logits, expected, rtol=0, atol=ROUNDING)


@pytest.mark.slow
def test_logits(built: Built) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="pip install onnxruntime")
    recipe, variables, content = built
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    normalize = make_normalize(recipe.mean, recipe.std)
    predict = jax.jit(steps.make_predict(make_model(recipe), normalize=normalize))
    images = saved.images(recipe.network, 64)
    expected = np.asarray(predict(variables, images))
    for batch in (1, 5, 64):
        (logits,) = session.run(["logits"], {"image": images[:batch]})
        assert (logits.dtype, logits.shape) == (np.float32, (batch, 10))
        np.testing.assert_allclose(logits, expected[:batch], rtol=0, atol=ROUNDING)


def test_the_same_network_gives_the_same_file(built: Built) -> None:
    recipe, variables, content = built
    assert build(recipe, variables, {"seed": "0"}) == content
    other = recipe.replace(mean=(0.25,))
    assert build(other, variables, {"seed": json.dumps(0)}) != content


def test_a_graph_that_is_none_is_not_returned(
    built: Built, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, variables, _ = built
    monkeypatch.setattr("jaxcnn.deploy.onnx_graph._IR_VERSION", 0)
    with pytest.raises(onnx.checker.ValidationError):
        build(recipe, variables, {})


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=re.escape("pip install 'jaxcnn[onnx]'")):
        onnx_graph.load_onnx()
