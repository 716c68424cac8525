"""The two networks as ONNX graphs of standard operators.

Pictures go in as they are: normalisation is part of the graph. Inside, channels come first, as
ONNX's convolutions want them, so the weights are those of `jaxcnn.networks.pytorch`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxcnn
from jaxcnn.errors import UserError
from jaxcnn.networks import pytorch
from jaxcnn.networks.cnn import BATCH_NORM_EPSILON
from jaxcnn.recipes.recipe import Recipe

OPSET = 17
# The one that opset 17 came with; onnx would write its newest, which older runtimes refuse.
_IR_VERSION = 8


def build(recipe: Recipe, variables: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Returns a network in evaluation mode as an ONNX model, checked by onnx itself.

    Its input is `image`, uint8[N, H, W, C] for any N; its output `logits`, float32[N, 10].

    Args:
        recipe: that it was trained with.
        variables: its `params`, and `batch_stats` for CIFAR-10.
        metadata: what the file says beside the graph, see `metadata_props` of ONNX.

    Raises:
        UserError: onnx is missing, or a weight is missing or misshapen.
    """
    onnx = load_onnx()
    graph = _Graph(onnx, pytorch.to_state_dict(variables))
    x = graph.add("Cast", "image", to=onnx.TensorProto.FLOAT)
    x = graph.add("Div", x, graph.constant("white", 255.0))
    x = graph.add("Sub", x, graph.constant("mean", recipe.mean))
    x = graph.add("Div", x, graph.constant("std", recipe.std))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    x = {"mnist": _mnist, "cifar10": _cifar10}[recipe.network](graph, x)
    x = graph.add("Flatten", x)
    x = graph.add("Relu", graph.dense("fc1", x))
    graph.dense("fc2", x, output="logits")

    def value(name: str, kind: int, *shape: int) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, ["N", *shape])

    made = onnx.helper.make_graph(
        graph.nodes,
        f"jaxcnn-{recipe.network}",
        [value("image", onnx.TensorProto.UINT8, *recipe.image_shape)],
        [value("logits", onnx.TensorProto.FLOAT, len(recipe.class_names))],
        graph.initializers,
    )
    model = onnx.helper.make_model(
        made,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="jaxcnn",
        producer_version=jaxcnn.__version__,
    )
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model, full_check=True)
    content: bytes = model.SerializeToString(deterministic=True)
    return content


def load_onnx() -> Any:
    """Returns the package onnx.

    Raises:
        UserError: it is not installed.
    """
    try:
        import onnx
    except ImportError:
        raise UserError("an ONNX file needs the package onnx: pip install 'jaxcnn[onnx]'") from None
    return onnx


def _mnist(graph: "_Graph", x: str) -> str:
    for layer in (1, 2):
        x = graph.add("Relu", graph.conv(layer, x))
        x = graph.pool("MaxPool", x)
    return x


def _cifar10(graph: "_Graph", x: str) -> str:
    pools = {3: "MaxPool", 4: "AveragePool", 5: "MaxPool"}
    for layer in range(1, 6):
        x = graph.conv(layer, x)
        if layer == 3:  # as in the original
            x = graph.norm(layer, graph.add("Relu", x))
        else:
            x = graph.add("Relu", graph.norm(layer, x))
        if layer in pools:
            x = graph.pool(pools[layer], x)
    return x


class _Graph:
    """Nodes and constants as they come; every method returns the name of its output."""

    def __init__(self, onnx: Any, weights: Mapping[str, np.ndarray]) -> None:
        self._onnx = onnx
        self._weights = weights
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        name = f"{len(self.nodes):02d}-{operator}"
        output = output or name
        node = self._onnx.helper.make_node(operator, inputs, [output], name=name, **attributes)
        self.nodes.append(node)
        return output

    def constant(self, name: str, value: Any) -> str:
        array = np.asarray(value, np.float32)
        self.initializers.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def conv(self, layer: int, x: str) -> str:
        kernel, bias = self._constants(f"conv{layer}", "weight", "bias")
        edge = self._weights[kernel].shape[-1] // 2
        return self.add("Conv", x, kernel, bias, pads=[edge] * 4)

    def norm(self, layer: int, x: str) -> str:
        names = ("weight", "bias", "running_mean", "running_var")
        constants = self._constants(f"batch_norm{layer}", *names)
        return self.add("BatchNormalization", x, *constants, epsilon=BATCH_NORM_EPSILON)

    def pool(self, operator: str, x: str) -> str:
        return self.add(operator, x, kernel_shape=[2, 2], strides=[2, 2])

    def dense(self, layer: str, x: str, output: str = "") -> str:
        constants = self._constants(layer, "weight", "bias")
        return self.add("Gemm", x, *constants, output=output, transB=1)

    def _constants(self, layer: str, *names: str) -> list[str]:
        full = [f"{layer}.{name}" for name in names]
        return [self.constant(name, self._weights[name]) for name in full]
