"""What learning curves consist of, and their colours."""

from collections.abc import Mapping

import numpy as np

Curves = Mapping[str, np.ndarray]
"""float[epochs, E] by name, of E runs: the loss in nats and the accuracy in 0..1 of two splits,
"train_loss", "train_accuracy", and for example "test_loss" and "test_accuracy". NaN is a gap."""

# Blue and vermilion of Okabe and Ito's palette, which colour-blind readers can distinguish.
TRAIN, TEST = "#0072B2", "#D55E00"


def splits(curves: Curves) -> list[str]:
    """Returns the names of the two splits, "train" first."""
    return [name.removesuffix("_loss") for name in curves if name.endswith("_loss")]
