"""The characters of EMNIST, which TFDS's class names do not tell."""

import string

_DIGITS, _UPPER, _LOWER = string.digits, string.ascii_uppercase, string.ascii_lowercase

# By configuration (Cohen et al., https://arxiv.org/abs/1702.05373, table II and figure 1). Merged
# are those small letters that look like their capital.
CLASS_NAMES: dict[str, tuple[str, ...]] = {
    "emnist/byclass": tuple(_DIGITS + _UPPER + _LOWER),
    "emnist/bymerge": tuple(_DIGITS + _UPPER + "abdefghnqrt"),
    "emnist/balanced": tuple(_DIGITS + _UPPER + "abdefghnqrt"),
    # TFDS has 37 classes, of which the labels 1 to 26 occur.
    "emnist/letters": ("0", *_UPPER, *map(str, range(27, 37))),
    "emnist/digits": tuple(_DIGITS),
    "emnist/mnist": tuple(_DIGITS),
}
