"""Learning curves of one run or many, as a figure."""

import numpy as np

from jaxcnn.display.drawing import (
    Figure,
    FixedLocator,
    MaxNLocator,
    style_axes,
    subplots,
    use_log_scale,
)
from jaxcnn.display.series import TEST, TRAIN, Curves, splits

# In percent: the error at which an accuracy of 100 % is shown on the logarithmic axis of errors.
_LEAST_ERROR = 0.02
_ACCURACY_TICKS = (0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 100)


def plot_curves(curves: Curves) -> Figure:
    """Plots loss and accuracy by epoch, a line for each run and split.

    Args:
        curves: of one run or many.
    """
    figure, axes = subplots(1, 2, figsize=(9, 3.6))
    for axis, name, scale in ((axes[0], "loss", 1), (axes[1], "accuracy", 100)):
        for split, colour, style in zip(splits(curves), (TRAIN, TEST), ("--", "-"), strict=True):
            values = scale * curves[f"{split}_{name}"]
            epochs = np.arange(1, len(values) + 1)
            alone = values.shape[1] == 1
            look = {"marker": "o", "ms": 3} if alone else {"lw": 0.8, "alpha": 0.5}
            for position, line in enumerate(values.T):
                label = split if position == 0 else None
                axis.plot(epochs, line, style, color=colour, label=label, **look)
        axis.set(xlabel="epoch", ylabel="loss, nats" if scale == 1 else "accuracy, %")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style_axes(axis, grid="y")
    least, most = axes[0].dataLim.intervaly
    if most > 5 * least > 0:
        use_log_scale(axes[0])
    least, most = axes[1].dataLim.intervaly
    if 100 - least > 10 * (100 - most):
        # By the logarithm of the error: otherwise all but the first epochs coincide.
        axes[1].set_yscale("function", functions=(_to_log_error, _to_percent))
        axes[1].yaxis.set_major_locator(FixedLocator(_ACCURACY_TICKS))
        axes[1].yaxis.set_major_formatter("{x:g}")
        axes[1].set_ylabel("accuracy, % (log scale of errors)")
    axes[0].legend(frameon=False)
    return figure


def _to_log_error(percent: np.ndarray) -> np.ndarray:
    """Maps an accuracy in percent to its position on the axis, minus the log of the error."""
    return -np.log10(np.maximum(100 + _LEAST_ERROR - percent, _LEAST_ERROR))


def _to_percent(position: np.ndarray) -> np.ndarray:
    """Inverts `_to_log_error`."""
    return 100 + _LEAST_ERROR - 10.0**-position
