"""The figures of a run, beyond what test_page finds of them on the page."""

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib import colors
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.display import series
from jaxcnn.report import figures
from jaxcnn.report.analysis import Analysis
from jaxcnn.train.result import EpochRecord
from tests.official import CIFAR_NAMES

DIGITS = tuple("0123456789")


def _record(epoch: int, accuracy: float, loss: float = 0.5) -> EpochRecord:
    fields = dict.fromkeys(EpochRecord.__dataclass_fields__, 0.5)
    changed = {
        "epoch": epoch,
        "train_accuracy": accuracy,
        "test_accuracy": accuracy,
        "train_loss": loss,
        "test_loss": loss / 2,
    }
    return EpochRecord(**fields | changed)


def _places(accuracies: list[float]) -> list[float]:
    """How high the test accuracies lie, as shares of the figure's height."""
    figure = figures.plot_learning_curves(
        [_record(i, a) for i, a in enumerate(accuracies, start=1)]
    )
    figure.draw_without_rendering()
    axes = figure.axes[1]
    heights = [axes.transData.transform((1, 100 * accuracy))[1] for accuracy in accuracies]
    return [float(height - axes.bbox.y0) / axes.bbox.height for height in heights]


def test_a_tenth_of_the_errors_is_as_far_up_each_time() -> None:
    places = _places([0.1, 0.9, 0.99, 0.999])
    # Equal but for the least error that is shown, a fifth of the last one.
    assert places[3] - places[2] == pytest.approx(places[2] - places[1], rel=0.2)


def test_few_per_cent_are_even() -> None:
    places = _places([0.6, 0.7, 0.8])
    assert places[2] - places[1] == pytest.approx(places[1] - places[0])


def test_no_error_at_all_is_in_the_figure() -> None:
    assert all(-0.01 <= place <= 1.01 for place in _places([0.5, 1.0, 1.0]))


def test_a_single_epoch_has_a_single_tick() -> None:
    figure = figures.plot_learning_curves([_record(1, 0.5)])
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]


def _ticks(axes: Axes) -> list[float]:
    low, high = axes.get_ylim()
    return [float(tick) for tick in axes.get_yticks() if low <= tick <= high]


def _bare(axes: Axes) -> bool:
    """Whether there is neither a tick nor a frame."""
    spines = any(spine.get_visible() for spine in axes.spines.values())
    return not (list(axes.get_xticks()) or list(axes.get_yticks()) or spines)


def _open_above(axes: Axes) -> bool:
    """Whether only the left and lower sides of the frame are visible."""
    seen = [side for side, spine in axes.spines.items() if spine.get_visible()]
    return sorted(seen) == ["bottom", "left"]


def _size(figure: Figure) -> list[float]:
    return [float(side) for side in figure.get_size_inches()]


def _grid(figure: Figure) -> tuple[int, int]:
    """Rows and columns of the figure's axes."""
    return figure.axes[0].get_subplotspec().get_gridspec().get_geometry()  # type: ignore[union-attr]


def _shown(axes: Axes) -> np.ndarray:
    (image,) = axes.images
    return np.ma.filled(image.get_array(), np.nan)


def test_learning_curves() -> None:
    history = [_record(1, 0.2, loss=4.0), _record(2, 0.4, loss=2.0), _record(3, 0.5, loss=1.0)]
    figure = figures.plot_learning_curves(history)
    assert _size(figure) == [9, 3.6]
    assert _grid(figure) == (1, 2)
    losses, accuracies = figure.axes
    for axes, scale, name in ((losses, 1, "loss"), (accuracies, 100, "accuracy")):
        train, test = axes.lines
        assert (train.get_label(), test.get_label()) == ("train", "test")
        assert (train.get_linestyle(), test.get_linestyle()) == ("--", "-")
        assert train.get_color() != test.get_color()
        for line, split in ((train, "train"), (test, "test")):
            assert list(line.get_xdata()) == [1, 2, 3]  # type: ignore[arg-type]
            values = [scale * getattr(record, f"{split}_{name}") for record in history]
            assert list(line.get_ydata()) == pytest.approx(values)  # type: ignore[arg-type]
            assert (line.get_marker(), line.get_markersize()) == ("o", 3)
        assert _open_above(axes)
        assert axes.get_xlabel() == "epoch"
        # Faint horizontal lines, no vertical ones.
        assert [line.get_alpha() for line in axes.get_ygridlines()[:1]] == [0.3]
        assert axes.get_ygridlines()[0].get_visible()
        assert not axes.get_xgridlines()[0].get_visible()
        assert all(tick == round(tick) for tick in axes.get_xticks())
    assert losses.get_ylabel() == "loss, nats"
    assert accuracies.get_ylabel() == "accuracy, %"
    assert losses.get_legend() is not None
    assert not losses.get_legend().get_frame_on()
    assert accuracies.get_legend() is None
    # From 0.5 to 4 the loss falls by a factor of more than five.
    assert losses.get_yscale() == "log"
    assert _ticks(losses) == [0.5, 1, 2, 3]
    figure.draw_without_rendering()
    labels = [label.get_text() for label in losses.get_yticklabels()]
    assert {"0.5", "1", "2", "3"} <= set(labels)
    assert not [label for label in losses.get_yticklabels(minor=True) if label.get_text()]


def test_curves_that_change_little_have_even_axes() -> None:
    """A factor of five in the loss, of ten in the errors."""
    figure = figures.plot_learning_curves([_record(1, 0.0, loss=2.5), _record(2, 0.9, loss=1.0)])
    losses, accuracies = figure.axes
    assert losses.get_yscale() == "linear"
    assert accuracies.get_yscale() == "linear"
    assert accuracies.get_ylabel() == "accuracy, %"
    figure = figures.plot_learning_curves([_record(1, 0.0, loss=2.52), _record(2, 0.901, loss=1.0)])
    losses, accuracies = figure.axes
    assert losses.get_yscale() == "log"
    assert accuracies.get_yscale() == "function"
    assert accuracies.get_ylabel() == "accuracy, % (log scale of errors)"
    assert _ticks(accuracies) == [0, 50, 80, 90]
    figure.draw_without_rendering()
    labels = [label.get_text() for label in accuracies.get_yticklabels()]
    assert {"0", "50", "80", "90"} <= set(labels)


def test_the_scale_of_errors() -> None:
    figure = figures.plot_learning_curves([_record(1, 0.0), _record(2, 1.0)])
    axes = figure.axes[1]
    ticks = [0, 50, 80, 90, 95, 98, 99, 99.5, 99.8, 99.9, 100]
    assert [float(tick) for tick in axes.get_yticks()] == ticks
    transform = axes.yaxis.get_transform()
    percent = np.array([0, 50, 99, 99.9, 100])
    # The least error that is shown is 0.02 %.
    expected = -np.log10([100.02, 50.02, 1.02, 0.12, 0.02])
    np.testing.assert_allclose(transform.transform(percent), expected)
    np.testing.assert_allclose(transform.inverted().transform(expected), percent, atol=1e-9)
    assert transform.transform(np.array([101.0])) == pytest.approx(-np.log10(0.02))


def _split(labels: list[int], shape: tuple[int, int, int] = (28, 28, 1)) -> Split:
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (len(labels), *shape)).astype(np.uint8)
    return Split(images, np.array(labels, np.int32))


def _network(**rest: Any) -> Any:
    """The parts of a network that the figures use."""
    return SimpleNamespace(**rest)


def test_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    split = _split([3, 1, 3, 0, 1], (32, 32, 3))
    dataset = Dataset("cifar10", "x", split, split, CIFAR_NAMES)
    keys: list[Any] = []
    monkeypatch.setattr(
        "jaxcnn.report.figures.make_augment",
        lambda name: {
            "none": None,
            "flip": lambda key, images: keys.append(key) or jnp.asarray(images)[:, :, ::-1],
        }[name],
    )
    figure = figures.plot_samples(_network(recipe=SimpleNamespace(augment="flip")), dataset)
    assert _grid(figure) == (4, 3)
    assert len({str(key) for key in keys}) == 3
    axes = np.array(figure.axes).reshape(4, 3)
    for column, position in enumerate([3, 1, 0]):  # the first image of each class
        image = split.images[position]
        np.testing.assert_array_equal(_shown(axes[0][column]), image)
        for row in (1, 2, 3):
            np.testing.assert_array_equal(_shown(axes[row][column]), image[:, ::-1])
    assert [one.get_title() for one in axes[0]] == ["airplane", "automobile", "cat"]
    assert {one.title.get_fontsize() for one in axes[0]} == {9}
    assert not any(one.get_title() for one in axes[1:].flat)
    assert all(_bare(one) for one in axes.flat)
    assert _size(figure) == pytest.approx([1.05 * 3 + 0.2, 1.05 * 4 + 0.3])
    plain = figures.plot_samples(
        _network(recipe=SimpleNamespace(augment="none")), dataset, columns=2
    )
    assert _grid(plain) == (1, 2)
    engine: Any = plain.get_layout_engine()
    assert (engine.get()["w_pad"], engine.get()["h_pad"]) == (0.05, 0.05)


def test_samples_of_ten_classes() -> None:
    split = _split(list(range(10)))
    dataset = Dataset("mnist", "x", split, split, DIGITS)
    figure = figures.plot_samples(_network(recipe=SimpleNamespace(augment="none")), dataset)
    assert [one.get_title() for one in figure.axes] == list(DIGITS)
    (image,) = figure.axes[3].images
    np.testing.assert_array_equal(_shown(figure.axes[3]), split.images[3, ..., 0])
    assert (image.get_clim(), image.get_cmap().name) == ((0, 255), "gray")
    assert image.get_interpolation() == "nearest"


def test_feature_maps() -> None:
    split = _split([0, 1, 2, 3, 4])
    dataset = Dataset("mnist", "x", split, split, DIGITS)
    generator = np.random.default_rng(0)
    layers = {
        "conv1": generator.normal(size=(3, 4, 6, 3)),
        "conv2": generator.normal(size=(3, 2, 2, 20)),
    }
    seen: list[np.ndarray] = []
    network = _network(feature_maps=lambda images: seen.append(images) or layers)
    figure = figures.plot_feature_maps(network, dataset)
    np.testing.assert_array_equal(seen[0], split.images[:3])
    assert _grid(figure) == (3, 3)
    assert _size(figure) == pytest.approx([1.5 * 3 + 0.2, 1.5 * 3 + 0.3])
    axes = np.array(figure.axes).reshape(3, 3)
    assert [one.get_title() for one in axes[0]] == ["image", "conv1: 3 maps", "conv2: 20 maps"]
    assert {one.title.get_fontsize() for one in axes[0]} == {9}
    assert all(_bare(one) for one in axes.flat)
    for row in range(3):
        np.testing.assert_array_equal(_shown(axes[row][0]), split.images[row, ..., 0])
        # Three maps lie in a square of two by two with a line between them.
        shown = _shown(axes[row][1])
        assert shown.shape == (9, 13)
        for index, (top, left) in enumerate([(0, 0), (0, 7), (5, 0)]):
            one = layers["conv1"][row, ..., index]
            levels = (one - one.min()) / (one.max() - one.min())
            np.testing.assert_allclose(shown[top : top + 4, left : left + 6], levels)
        assert np.isnan(shown[4]).all()
        assert np.isnan(shown[:, 6]).all()
        assert np.isnan(shown[5:, 7:]).all()
        assert _shown(axes[row][2]).shape == (11, 11)  # sixteen at most
    (image,) = axes[0][1].images
    assert (image.get_cmap().name, image.get_interpolation()) == ("magma", "nearest")


def test_a_map_of_one_value_is_dark() -> None:
    assert not figures._arrange_maps(np.full((2, 3, 1), 7.0)).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_kernels(channels: int) -> None:
    kernel = np.random.default_rng(0).normal(size=(3, 3, channels, 2)).astype(np.float32)
    network = _network(variables={"params": {"conv1": {"kernel": kernel}}})
    figure = figures.plot_kernels(network)
    assert _grid(figure) == (channels, 2)
    assert _size(figure) == pytest.approx([1.3 * 2 + 0.2, 1.3 * channels + 0.3])
    axes = np.array(figure.axes).reshape(channels, 2)
    limit = float(np.abs(kernel).max())
    for channel in range(channels):
        for index in range(2):
            (image,) = axes[channel][index].images
            np.testing.assert_array_equal(image.get_array(), kernel[..., channel, index])
            assert image.get_clim() == (-limit, limit)  # white is zero
            assert image.get_cmap().name == "RdBu_r"
    assert [one.get_title() for one in axes[0]] == ["filter 1", "filter 2"]
    assert {one.title.get_fontsize() for one in axes[0]} == {9}
    names = [one[0].get_ylabel() for one in axes]
    assert names == {1: [""], 3: ["red", "green", "blue"]}[channels]
    assert not any(one[1].get_ylabel() for one in axes)
    if channels == 3:
        assert {one[0].yaxis.label.get_fontsize() for one in axes} == {9}


def _analysis(pairs: list[tuple[int, int]], confidences: list[float] | None = None) -> Analysis:
    """The analysis of labels with their predictions."""
    confidences = confidences or len(pairs) * [0.9]
    rows = np.zeros((len(pairs), 10))
    for row, (_, prediction), confidence in zip(rows, pairs, confidences, strict=True):
        row[:] = (1 - confidence) / 9
        row[prediction] = confidence
    return Analysis(np.array([label for label, _ in pairs]), rows)


def _texts(axes: Axes) -> dict[tuple[float, float], Any]:
    return {text.get_position(): text for text in axes.texts}


def test_confusion() -> None:
    pairs = 30 * [(1, 1)] + 10 * [(2, 3)] + 6 * [(4, 5)] + 7 * [(5, 6)]
    figure = figures.plot_confusion(_analysis(pairs), CIFAR_NAMES)
    assert _size(figure) == [6.4, 5.6]
    (axes,) = figure.axes
    shown = _shown(axes)
    assert np.isnan(shown.diagonal()).all()  # the colour is of the mistakes
    assert (shown[2, 3], shown[4, 5], shown[5, 6], np.nansum(shown)) == (10, 6, 7, 23)
    (image,) = axes.images
    assert (image.get_clim(), image.get_cmap().name) == ((0, 10), "Oranges")
    texts = _texts(axes)
    assert {place: text.get_text() for place, text in texts.items()} == {
        (1, 1): "30",
        (3, 2): "10",
        (5, 4): "6",
        (6, 5): "7",
    }
    # White on what is dark: beyond 0.6 of the highest count.
    colours = {place: text.get_color() for place, text in texts.items()}
    assert colours == {(1, 1): "#444444", (3, 2): "white", (5, 4): "black", (6, 5): "white"}
    weights = {place: text.get_fontweight() for place, text in texts.items()}
    assert weights == {(1, 1): "bold", (3, 2): "normal", (5, 4): "normal", (6, 5): "normal"}
    for text in texts.values():
        assert (text.get_ha(), text.get_va(), text.get_fontsize()) == ("center", "center", 8)
    assert [label.get_text() for label in axes.get_xticklabels()] == list(CIFAR_NAMES)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CIFAR_NAMES)
    assert list(axes.get_xticks()) == list(axes.get_yticks()) == list(range(10))
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {45}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("prediction", "label")
    assert not any(spine.get_visible() for spine in axes.spines.values())
    assert {tick.tick1line.get_markersize() for tick in axes.xaxis.get_major_ticks()} == {0}


def test_confusion_without_mistakes_and_with_short_names() -> None:
    figure = figures.plot_confusion(_analysis([(1, 1)]), DIGITS)
    (axes,) = figure.axes
    assert axes.images[0].get_clim() == (0, 1)
    assert {label.get_rotation() for label in axes.get_xticklabels()} == {0}
    for longest, rotation in (("10", 0), ("ten", 45)):
        names = (longest, *DIGITS[1:])
        (axes,) = figures.plot_confusion(_analysis([(1, 1)]), names).axes
        assert {label.get_rotation() for label in axes.get_xticklabels()} == {rotation}


def test_mistakes() -> None:
    pairs = [(0, 0), *((1, 2) for _ in range(12)), (3, 4)]
    found = _analysis(pairs, [0.99, *np.linspace(0.5, 0.72, 12), 0.955])
    split = _split([label for label, _ in pairs])
    dataset = Dataset("mnist", "x", split, split, DIGITS)
    figure = figures.plot_mistakes(found, dataset)
    assert _grid(figure) == (2, 10)
    assert _size(figure) == pytest.approx([1.05 * 10 + 0.2, (1.05 + 0.35) * 2 + 0.3])
    seen = [one for one in figure.axes if one.get_visible()]
    assert len(seen) == 13
    assert seen == figure.axes[:13]
    assert seen[0].get_title() == "4 (96%)\nlabel: 3"  # the most confident one
    assert [one.get_title() for one in seen[1:3]] == ["2 (72%)\nlabel: 1", "2 (70%)\nlabel: 1"]
    for one, position in zip(seen, [13, *range(12, 0, -1)], strict=True):
        np.testing.assert_array_equal(_shown(one), split.images[position, ..., 0])
    assert {one.title.get_fontsize() for one in seen} == {7.5}
    assert {one.title.get_color() for one in seen} == {"#B22222"}
    assert figure.get_suptitle() == ""
    one_row = figures.plot_mistakes(found, dataset, count=10)
    assert _grid(one_row) == (1, 10)
    many = _analysis(30 * [(1, 2)])
    split = _split(30 * [1])
    figure = figures.plot_mistakes(many, Dataset("mnist", "x", split, split, DIGITS))
    assert len([one for one in figure.axes if one.get_visible()]) == 20


def test_no_mistakes() -> None:
    split = _split([1])
    dataset = Dataset("mnist", "x", split, split, DIGITS)
    figure = figures.plot_mistakes(_analysis([(1, 1)]), dataset)
    assert figure.get_suptitle() == "no mistakes"
    assert not any(one.get_visible() for one in figure.axes)
    assert _grid(figure) == (1, 10)


def test_reliability() -> None:
    found = _analysis([(0, 0), (1, 1), (2, 3), (4, 4)], [0.95, 0.95, 0.95, 0.55])
    figure = figures.plot_reliability(found)
    assert _size(figure) == [4.8, 4.4]
    (axes,) = figure.axes
    perfect, line = axes.lines
    assert (list(perfect.get_xdata()), list(perfect.get_ydata())) == ([0, 1], [0, 1])  # type: ignore[arg-type]
    assert (perfect.get_linestyle(), perfect.get_linewidth()) == ("--", 1)
    np.testing.assert_allclose(line.get_xdata(), [0.55, 0.95])  # type: ignore[arg-type]
    np.testing.assert_allclose(line.get_ydata(), [1, 2 / 3])  # type: ignore[arg-type]
    assert line.get_linewidth() == 1
    (points,) = axes.collections
    np.testing.assert_allclose(points.get_offsets(), [[0.55, 1], [0.95, 2 / 3]])
    np.testing.assert_allclose(points.get_sizes(), [120, 320])  # type: ignore[attr-defined]
    assert points.get_alpha() == 0.8
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, 1.08), (0, 1.08))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("confidence", "accuracy")
    # A quarter is off by 0.45, three quarters by 0.95 - 2 / 3.
    assert axes.get_title() == "expected calibration error 32.50%"
    assert axes.title.get_fontsize() == 10
    assert not axes.get_legend().get_frame_on()
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["perfectly calibrated", "area: images"]
    assert axes.get_ygridlines()[0].get_alpha() == 0.3
    assert axes.get_ygridlines()[0].get_visible()
    assert _open_above(axes)


def test_classes() -> None:
    pairs = [(label, label) for label in range(9) for _ in range(4)]
    pairs[0] = (0, 5)  # class 0: three of four
    figure = figures.plot_class_accuracy(_analysis(pairs), CIFAR_NAMES)
    assert _size(figure) == [6.4, 3.8]
    (axes,) = figure.axes
    bars: Any = axes.patches
    assert [bar.get_width() for bar in bars] == [75, *(8 * [100]), 0]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in bars]
    assert middles == pytest.approx(list(range(10)))
    assert {round(bar.get_height(), 9) for bar in bars} == {0.7}
    assert axes.get_xlim() == (70, 100)  # five below the least, in steps of five
    assert axes.yaxis_inverted()  # the first class on top
    assert [label.get_text() for label in axes.get_yticklabels()] == list(CIFAR_NAMES)
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["75.0 ", *(8 * ["100.0 "]), " no images"]
    assert [text.get_position() for text in axes.texts[::9]] == [(75, 0), (70, 9)]
    for text in axes.texts:
        assert (text.get_va(), text.get_fontsize()) == ("center", 8)
    assert {text.get_ha() for text in axes.texts[:9]} == {"right"}
    (line,) = axes.lines
    assert list(line.get_xdata()) == pytest.approx(2 * [100 * 35 / 36])  # type: ignore[arg-type]
    assert (line.get_linewidth(), line.get_linestyle()) == (1, ":")
    assert axes.get_xlabel() == "accuracy, % (dotted line: all classes)"
    assert _open_above(axes)


def test_classes_that_are_all_wrong() -> None:
    (axes,) = figures.plot_class_accuracy(_analysis([(0, 1)]), DIGITS).axes
    assert axes.get_xlim() == (0, 100)
    nothing: Any = SimpleNamespace(class_accuracy=np.full(10, np.nan), accuracy=0.0)
    (axes,) = figures.plot_class_accuracy(nothing, DIGITS).axes
    assert axes.get_xlim() == (0, 100)


def test_colours_differ_for_the_colour_blind() -> None:
    """By lightness: their luminances, of which red-green blindness takes nothing."""
    train, test = (np.dot(colors.to_rgb(c), [0.299, 0.587, 0.114]) for c in ("#0072B2", "#D55E00"))
    assert series.TRAIN == "#0072B2"
    assert series.TEST == "#D55E00"
    assert test - train > 0.1


def test_all_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    plots = "samples learning_curves feature_maps kernels confusion mistakes reliability"
    for plot in (*plots.split(), "class_accuracy"):
        monkeypatch.setattr(figures, f"plot_{plot}", lambda *args, plot=plot: (plot, args))
    network, history, found = _network(), [_record(1, 0.5)], _analysis([(1, 1)])
    split = _split([1])
    dataset = Dataset("mnist", "x", split, split, DIGITS)
    assert figures.plot_run(network, dataset, history, found) == {
        "samples": ("samples", (network, dataset)),
        "learning-curves": ("learning_curves", (history,)),
        "feature-maps": ("feature_maps", (network, dataset)),
        "kernels": ("kernels", (network,)),
        "confusion": ("confusion", (found, DIGITS)),
        "mistakes": ("mistakes", (found, dataset)),
        "reliability": ("reliability", (found,)),
        "classes": ("class_accuracy", (found, DIGITS)),
    }


@pytest.mark.parametrize("count", [1, 2])
def test_feature_maps_of_fewer_images(count: int) -> None:
    split = _split([0, 1][:count])
    network = _network(feature_maps=lambda images: {"conv1": np.zeros((len(images), 4, 6, 3))})
    figure = figures.plot_feature_maps(
        network, Dataset("mnist", "x", split, split, ("a", "b", "c"))
    )
    assert _grid(figure) == (count, 2)
