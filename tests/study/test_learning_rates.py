import pytest

from jaxcnn.errors import UserError
from jaxcnn.study.learning_rates import parse_rates

DEFAULTS = {"sgd": 0.05, "lion": 2e-4}


@pytest.mark.parametrize(
    ("specifications", "expected"),
    [
        (("1e-4:1:log10",), (1e-4, 1e-3, 1e-2, 1e-1, 1.0)),
        (("1:9:log2",), (1, 2, 4, 8)),
        (("0.1:0.5:log2",), (0.1, 0.2, 0.4)),
        (("0.3", "0.1", "0.3"), (0.1, 0.3)),
        (("default",), (0.005, 0.015, 0.05, 0.15, 0.5)),
        (("2:2:log10", "1"), (1, 2)),
        (("0.1:0.3:log1.7320508",), (0.1, 0.173205, 0.3)),  # rounding leaves no end out
    ],
)
def test_what_is_tried(specifications: tuple[str, ...], expected: tuple[float, ...]) -> None:
    assert parse_rates(specifications, ("sgd",), DEFAULTS.__getitem__) == {"sgd": expected}


def test_every_optimizer_has_its_own_defaults() -> None:
    found = parse_rates(("default",), ("sgd", "lion"), DEFAULTS.__getitem__)
    assert found["lion"] == (2e-5, 6e-5, 2e-4, 6e-4, 2e-3)


# The last two would be more numbers than can be tried.
BAD = "fast -1 0 nan inf 1:2 1:2:10 1:2:log1 2:1:log10 1:inf:log2 1:2:log10:3 0:1:log10 1:2:lognan"
BAD += " 1:1e9:log1.02 1e-300:1e300:log2"


@pytest.mark.parametrize("bad", ["", *BAD.split()])
def test_mistakes(bad: str) -> None:
    with pytest.raises(UserError, match="--learning-rates takes numbers above 0"):
        parse_rates((bad,), ("sgd",), DEFAULTS.__getitem__)
