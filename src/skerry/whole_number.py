"""Checks that an argument is a whole number, so that a mistake is named where it is made."""

from numbers import Integral


def check_whole_number(name: str, value: object, least: int) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least``.

    Args:
        name: of the argument, for the message.
        value: what was given; numpy's integers count, 5.0 and True do not.
        least: the smallest value allowed.

    Example:
        >>> check_whole_number("workers", "4", 1)
        Traceback (most recent call last):
        ValueError: workers='4': expected a whole number, at least 1
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f"{name}={value!r}: expected a whole number, at least {least}")
