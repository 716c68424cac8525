"""The learning rates that a study tries."""

import math
from collections.abc import Callable

from jaxcnn.errors import UserError


def parse_rates(
    specifications: tuple[str, ...], optimizers: tuple[str, ...], default: Callable[[str], float]
) -> dict[str, tuple[float, ...]]:
    """Returns the learning rates to try for each optimizer, in ascending order.

    Args:
        specifications: numbers, ranges "START:STOP:logB" that multiply by B from START up to STOP,
            or "default": the optimizer's own rate times 0.1, 0.3, 1, 3 and 10.
        optimizers: their names.
        default: returns an optimizer's own learning rate.

    Raises:
        UserError: a specification has none of these forms.
    """
    rates = {}
    for optimizer in optimizers:
        values: set[float] = set()
        for specification in specifications:
            if specification == "default":
                values |= {default(optimizer) * factor for factor in (0.1, 0.3, 1.0, 3.0, 10.0)}
            else:
                values |= set(_parse(specification))
        # Rounded, so that 1e-4 times ten times ten is 0.01.
        rates[optimizer] = tuple(sorted({float(f"{value:.6g}") for value in values}))
    return rates


def _parse(specification: str) -> list[float]:
    """Returns the numbers of "NUMBER" or "START:STOP:logB".

    Raises:
        UserError: it has neither form, or a number is not above 0 and finite.
    """
    try:
        start, *rest = specification.split(":")
        values = [float(start)]
        if rest:
            stop, spacing = rest
            base = float(spacing.removeprefix("log"))
            increasing = 0 < values[0] <= float(stop) < math.inf
            if not (spacing.startswith("log") and base > 1 and increasing):
                raise ValueError
            if math.log(float(stop) / values[0], base) > 1000:
                raise ValueError
            while values[-1] * base <= float(stop) * (1 + 1e-9):
                values.append(values[-1] * base)
        if not all(math.isfinite(value) and value > 0 for value in values):
            raise ValueError
    except ValueError:
        raise UserError(
            "--learning-rates takes numbers above 0, ranges like 1e-4:1:log10, or default, "
            f"got {specification!r}"
        ) from None
    return values
