"""The two networks as ONNX graphs of standard operators, in the order of `jaxcnn.networks.cnn`.

Normalisation is part of the graph. Inside, channels come first, as in ONNX's convolutions, with the
weights of `jaxcnn.networks.pytorch`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxcnn
from jaxcnn.errors import UserError
from jaxcnn.networks import pytorch
from jaxcnn.networks.cnn import BATCH_NORM_EPSILON
from jaxcnn.train.trained import Trained

OPSET = 17
# The version that was current with opset 17: older runtimes refuse onnx's newest, its default.
_IR_VERSION = 8


def build_onnx(network: Trained, metadata: Mapping[str, str]) -> bytes:
    """Converts a network in evaluation mode to an ONNX model, checked by onnx itself.

    Its input is `image`, uint8[N, H, W, C] for any N; its output `logits`, float32[N, classes].

    Args:
        network: as trained.
        metadata: of the model, ONNX's `metadata_props`.

    Returns:
        The model's file, the same for the same arguments.

    Raises:
        UserError: onnx is missing, or a weight is missing or of the wrong shape.
    """
    onnx = load_onnx()
    graph = _Graph(onnx, pytorch.to_state_dict(network.variables, network.image_shape))
    recipe = network.recipe
    x = graph.add("Cast", "image", to=onnx.TensorProto.FLOAT)
    x = graph.add("Div", x, graph.constant("white", 255.0))
    x = graph.add("Sub", x, graph.constant("mean", recipe.mean))
    x = graph.add("Div", x, graph.constant("std", recipe.std))
    x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    x = {"mnist": _mnist, "cifar10": _cifar10}[recipe.network](graph, x)
    x = graph.add("Flatten", x)
    x = graph.relu(graph.dense("fc1", x))
    graph.dense("fc2", x, output="logits")

    def value(name: str, kind: int, *shape: int) -> Any:
        return onnx.helper.make_tensor_value_info(name, kind, ["N", *shape])

    onnx_graph = onnx.helper.make_graph(
        graph.nodes,
        f"jaxcnn-{recipe.network}",
        [value("image", onnx.TensorProto.UINT8, *network.image_shape)],
        [value("logits", onnx.TensorProto.FLOAT, len(network.class_names))],
        graph.initializers,
    )
    model = onnx.helper.make_model(
        onnx_graph,
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
    """Adds the convolutional layers of `MnistCNN`."""
    x = graph.relu(graph.conv("conv1", x))
    x = graph.max_pool(x)
    x = graph.relu(graph.conv("conv2", x))
    return graph.max_pool(x)


def _cifar10(graph: "_Graph", x: str) -> str:
    """Adds the convolutional layers of `Cifar10CNN`."""
    x = graph.relu(graph.batch_norm("batch_norm1", graph.conv("conv1", x)))
    x = graph.relu(graph.batch_norm("batch_norm2", graph.conv("conv2", x)))
    x = graph.batch_norm("batch_norm3", graph.relu(graph.conv("conv3", x)))
    x = graph.max_pool(x)
    x = graph.relu(graph.batch_norm("batch_norm4", graph.conv("conv4", x)))
    x = graph.avg_pool(x)
    x = graph.relu(graph.batch_norm("batch_norm5", graph.conv("conv5", x)))
    return graph.max_pool(x)


class _Graph:
    """The nodes and constants of a graph. Each method adds a node and returns its output's name."""

    def __init__(self, onnx: Any, weights: Mapping[str, np.ndarray]) -> None:
        self._onnx = onnx
        self._weights = weights
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Adds a node.

        Args:
            operator: its ONNX operator.
            *inputs: names of its inputs.
            output: name of its output, by default the node's own.
            **attributes: of the operator.

        Returns:
            The name of its output.
        """
        name = f"{len(self.nodes):02d}-{operator}"
        node = self._onnx.helper.make_node(
            operator, inputs, [output or name], name=name, **attributes
        )
        self.nodes.append(node)
        return output or name

    def constant(self, name: str, value: Any) -> str:
        """Adds a constant.

        Args:
            name: of the constant.
            value: converted to float32.

        Returns:
            The name.
        """
        array = np.asarray(value, np.float32)
        self.initializers.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def conv(self, layer: str, x: str) -> str:
        """Adds a convolution.

        Args:
            layer: its name, before that of its weights.
            x: name of the input.

        Returns:
            The name of the output.
        """
        kernel, bias = self._constants(layer, "weight", "bias")
        edge = self._weights[kernel].shape[-1] // 2
        return self.add("Conv", x, kernel, bias, pads=[edge] * 4)

    def batch_norm(self, layer: str, x: str) -> str:
        """Adds a BatchNorm in evaluation mode.

        Args:
            layer: its name, before that of its weights.
            x: name of the input.

        Returns:
            The name of the output.
        """
        constants = self._constants(layer, "weight", "bias", "running_mean", "running_var")
        return self.add("BatchNormalization", x, *constants, epsilon=BATCH_NORM_EPSILON)

    def dense(self, layer: str, x: str, output: str = "") -> str:
        """Adds a dense layer.

        Args:
            layer: its name, before that of its weights.
            x: name of the input.
            output: name of the output, by default the node's own.

        Returns:
            The name of the output.
        """
        constants = self._constants(layer, "weight", "bias")
        return self.add("Gemm", x, *constants, output=output, transB=1)

    def relu(self, x: str) -> str:
        return self.add("Relu", x)

    def max_pool(self, x: str) -> str:
        return self.add("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])

    def avg_pool(self, x: str) -> str:
        return self.add("AveragePool", x, kernel_shape=[2, 2], strides=[2, 2])

    def _constants(self, layer: str, *names: str) -> list[str]:
        """Adds a layer's weights, and returns their names."""
        full = [f"{layer}.{name}" for name in names]
        return [self.constant(name, self._weights[name]) for name in full]
