"""The two problems, MNIST and CIFAR-10: what is looked up by "mnist" or "cifar10"."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """An image classification problem.

    Attributes:
        name: of the problem, and of the network and the data set for it.
        title: the name as it is written.
        class_names: in the order of their labels.
        image_shape: of one image, (H, W, C).
        mean: of each channel over the training images, with pixels in 0..1.
        std: the standard deviation of each channel, over the same pixels.
        target: validation accuracy whose time a study reports, 0..1.
    """

    name: str
    title: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    target: float


MNIST = Problem(
    name="mnist",
    title="MNIST",
    class_names=tuple("0123456789"),
    image_shape=(28, 28, 1),
    mean=(0.1307,),
    std=(0.3081,),
    target=0.98,
)
CIFAR10 = Problem(
    name="cifar10",
    title="CIFAR-10",
    class_names=tuple("airplane automobile bird cat deer dog frog horse ship truck".split()),
    image_shape=(32, 32, 3),
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    target=0.7,
)
PROBLEMS: dict[str, Problem] = {problem.name: problem for problem in (MNIST, CIFAR10)}


def is_own_data(dataset: str) -> bool:
    """Whether a data set's name is neither a problem's nor that of a synthetic one of its form."""
    return dataset.removeprefix("synthetic-") not in PROBLEMS
