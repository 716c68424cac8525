"""Training in the page's worker."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset, load_data
from jaxcnn.deploy import packing, page_data
from jaxcnn.train.trained import Trained
from tests.deploy.engine import Engine, floats

# Trains until `until(message, worker)` returns true or the end is posted; returns the messages.
TRAIN = """
    const url = URL.createObjectURL(new Blob([WORKER], { type: "text/javascript" }));
    const worker = new Worker(url);
    const { training, test } = data.images;
    const weights = await unpackWeights(data.weights);
    const messages = [];
    await new Promise((resolve, reject) => {
        worker.onerror = ({ message }) => reject(new Error(message));
        worker.onmessage = ({ data: message }) => {
            const { weights: now, ...facts } = message;
            messages.push({ ...facts, kernel: now && values(now["conv1/kernel"]) });
            if (message.kind === "end" || message.kind === "error") resolve();
            else react(message, worker);
        };
        Promise.all([training, test].map(unpackImages)).then(([images, testImages]) => {
            worker.postMessage({
                kind: "start",
                description: data.network,
                weights: settings.fromWeights ? weights : null,
                images,
                labels: training.labels,
                test: { images: testImages, labels: test.labels },
                ...settings,
            });
        });
    });
    worker.terminate();
    return messages;
"""
SETTINGS = {
    "optimizer": {"name": "adam", "learningRate": 0.004},
    "batchSize": 25,
    "epochs": 2,
    "seed": 1,
}


def train(engine: Engine, data: dict[str, Any], react: str = "", **changes: Any) -> list[Any]:
    """Trains in a worker.

    Args:
        engine: of the browser.
        data: of the page.
        react: to each progress: statements with `message` and `worker`.
        **changes: of the settings.
    """
    body = f"const react = (message, worker) => {{ {react} }}; {TRAIN}"
    messages: list[Any] = engine.run(body, data=data, settings={**SETTINGS, **changes})
    return messages


@pytest.fixture(scope="module")
def stripes(networks: dict[str, Trained], tiny_mnist: Dataset) -> dict[str, Any]:
    return page_data.page_data(networks["mnist"], tiny_mnist, trainable=True)


def test_training_learns(engine: Engine, stripes: dict[str, Any]) -> None:
    messages = train(engine, stripes, epochs=6)
    *progress, end = messages
    assert [message["kind"] for message in messages] == ["progress"] * len(progress) + ["end"]
    assert end["step"] == end["steps"] == end["testStep"] == 6 * (330 // 25)
    assert end["testAccuracy"] > 0.9
    assert not end["stopped"]
    assert progress[0]["loss"] > 1
    kernels = [floats(message["kernel"], 5, 5, 1, 4) for message in (progress[0], end)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_moved(engine: Engine, channels: int) -> None:
    image = np.random.default_rng(0).integers(1, 256, (4, 5, channels))
    for down in (-1, 0, 1):
        for right in (-2, 0, 1):
            moved = engine.run(
                """
                const move = new Function(`${WORKER}; return moveImage;`)();
                const to = new Uint8Array(image.length).fill(7);
                move(to, Uint8Array.from(image), shape, down, right);
                return [...to];
                """,
                image=image.ravel().tolist(),
                shape=image.shape,
                down=down,
                right=right,
            )
            expected = np.roll(image, (down, right), (0, 1))
            rows, columns = (np.arange(n) for n in image.shape[:2])
            expected[~((rows - down >= 0) & (rows - down < 4))] = 0
            expected[:, ~((columns - right >= 0) & (columns - right < 5))] = 0
            np.testing.assert_array_equal(np.reshape(moved, image.shape), expected)


def test_a_seed_decides_the_run(engine: Engine, stripes: dict[str, Any]) -> None:
    one, same, other = (
        train(engine, stripes, epochs=1, seed=seed)[-1]["kernel"] for seed in (1, 1, 2)
    )
    assert one == same != other


def test_training_starts_from_weights(
    engine: Engine, stripes: dict[str, Any], networks: dict[str, Trained]
) -> None:
    slow = {"name": "sgd", "learningRate": 1e-9}
    messages = train(engine, stripes, optimizer=slow, epochs=1, fromWeights=True)
    kernel = networks["mnist"].variables["params"]["conv1"]["kernel"]
    assert floats(messages[-1]["kernel"], 5, 5, 1, 4) == pytest.approx(np.asarray(kernel), abs=1e-5)


def test_training_is_paused_resumed_and_stopped(engine: Engine, stripes: dict[str, Any]) -> None:
    react = """
        if (messages.length === 1) {
            worker.postMessage({ kind: "pause" });
            setTimeout(() => messages.push({ kind: "paused" }), 1000);
            setTimeout(() => {
                messages.push({ kind: "silence" });
                worker.postMessage({ kind: "resume" });
            }, 2000);
        }
        if (messages.some(({ kind }) => kind === "silence")) worker.postMessage({ kind: "stop" });
    """
    messages = train(engine, stripes, react, epochs=10**5)
    kinds = [message["kind"] for message in messages]
    assert kinds.index("silence") == kinds.index("paused") + 1
    assert kinds[-1] == "end"
    assert messages[-1]["stopped"]
    assert messages[-1]["step"] < messages[-1]["steps"]


def test_a_failure_is_posted(engine: Engine, stripes: dict[str, Any]) -> None:
    (message,) = train(engine, stripes, optimizer={"name": "none"})
    assert message["kind"] == "error"
    assert message["message"]


@pytest.mark.slow
def test_digits_are_learned(
    engine: Engine, networks: dict[str, Trained], tmp_path: Path, real_data: Path
) -> None:
    dataset = load_data("mnist", data_dir=tmp_path, archive_dir=real_data / "archives")
    data = page_data.page_data(networks["mnist"], dataset, trainable=True)
    random = np.random.default_rng(0).permutation(len(dataset.test))[:1_000]
    test = np.asarray(dataset.test.images)[random], np.asarray(dataset.test.labels)[random]
    data["images"]["test"] = packing.pack_images(*test)
    messages = train(engine, data, epochs=8)
    assert messages[-1]["testAccuracy"] > 0.97, curve(messages)


def curve(messages: list[Any]) -> str:
    """The seconds and the accuracy of each evaluation."""
    tests = {m["testStep"]: (m["seconds"], m["testAccuracy"]) for m in messages}
    return ", ".join(f"{seconds:.1f} s: {accuracy:.2%}" for seconds, accuracy in tests.values())
