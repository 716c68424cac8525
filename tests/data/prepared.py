"""Small data sets as TFDS prepares them."""

import io
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxcnn.data.tfds import quiet_tfds


def _png(image: np.ndarray) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "png")
    file.seek(0)
    return file


def prepare_other(
    data_dir: Path,
    splits: dict[str, list[dict[str, Any]]],
    features: dict[str, Any],
    *,
    keys: tuple[str, str] | None = None,
    version: str = "1.0.0",
    config: str = "small",
) -> Path:
    """Prepares the data set "shades" as array_record.

    Args:
        data_dir: TFDS's folder.
        splits: the examples of each split, their images as arrays.
        features: TFDS's features.
        keys: TFDS's supervised keys.
        version: of the data set.
        config: the name of its configuration; "" for none.

    Returns:
        Its folder.
    """

    class Shades(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        name = "shades"
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []
        url_infos: ClassVar[Any] = {}

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(features),
                supervised_keys=keys,
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            return {name: self._generate_examples(examples) for name, examples in splits.items()}

        def _generate_examples(self, examples: list[dict[str, Any]]) -> Any:
            for index, example in enumerate(examples):
                yield (
                    index,
                    {
                        key: _png(value) if isinstance(value, np.ndarray) else value
                        for key, value in example.items()
                    },
                )

    builder = Shades(data_dir=data_dir, file_format="array_record")
    with quiet_tfds():
        builder.download_and_prepare()
    return data_dir / "shades" / config / version
