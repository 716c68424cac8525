import tensorflow_datasets as tfds

from jaxcnn.data import emnist


def test_every_class_of_tfds_has_a_name() -> None:
    configs = tfds.builder_cls("emnist").builder_configs
    assert {name: len(names) for name, names in emnist.CLASS_NAMES.items()} == {
        f"emnist/{name}": config.class_number for name, config in configs.items()
    }


def test_characters() -> None:
    """Some of the mapping files of the official archive."""
    names = emnist.CLASS_NAMES
    assert [names["emnist/byclass"][label] for label in (0, 10, 36, 61)] == list("0Aaz")
    assert [names["emnist/balanced"][label] for label in (9, 35, 36, 38, 46)] == list("9Zadt")
    assert [names["emnist/letters"][label] for label in (1, 26)] == list("AZ")
