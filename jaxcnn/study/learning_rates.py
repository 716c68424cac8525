"""Which learning rates a study tries."""

import math
from collections.abc import Callable

from jaxcnn.errors import UserError


def parse_rates(
    specifications: tuple[str, ...], optimizers: tuple[str, ...], default: Callable[[str], float]
) -> dict[str, tuple[float, ...]]:
    """Reads what learning rates to try.

    Args:
        specifications: numbers, ranges "START:STOP:logB" that multiply by B from START up to STOP,
            or "default": each optimizer's own, and a third, a tenth, three and ten times it.
        optimizers: by name.
        default: the learning rate of an optimizer.

    Raises:
        UserError: one is nothing of that.
    """

    def read(specification: str, optimizer: str) -> list[float]:
        if specification == "default":
            return [default(optimizer) * factor for factor in (0.1, 0.3, 1.0, 3.0, 10.0)]
        try:
            start, *rest = specification.split(":")
            values = [float(start)]
            if rest:
                stop, spacing = rest
                base = float(spacing.removeprefix("log"))
                increasing = values[0] > 0 and values[0] <= float(stop) < math.inf
                if not (spacing.startswith("log") and base > 1 and increasing):
                    raise ValueError
                if math.log(float(stop) / values[0], base) > 1000:
                    raise ValueError
                while values[-1] * base <= float(stop) * (1 + 1e-9):
                    values.append(values[-1] * base)
        except ValueError:
            values = []
        if not values or not all(math.isfinite(value) and value > 0 for value in values):
            raise UserError(
                "--learning-rates takes numbers above 0, ranges like 1e-4:1:log10, or default, "
                f"got {specification!r}"
            )
        return values

    return {
        # Rounded, so that 1e-4 times ten times ten is 0.01.
        optimizer: tuple(
            sorted(
                {float(f"{value:.6g}") for one in specifications for value in read(one, optimizer)}
            )
        )
        for optimizer in optimizers
    }
