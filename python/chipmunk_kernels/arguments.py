"""Numbers that callers give: of any kind, or refused in the words of the ops.

An integer is what `operator.index` takes, a number what `float` takes: numpy's scalars and
zero-dimensional arrays among them. Arrays on a device other than the CPU are refused, as reading
one would wait for that device.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import fields
from numbers import Complex, Number, Real
from typing import Any, NoReturn, cast


def integer(owner: str, name: str, value: Any, expected: str = "an integer") -> int:
    """`value` as an int.

    Raises:
        ValueError: "owner: name: expected .., got .." for what is no integer.
    """
    if type(value) is int:
        return value
    try:
        return int(operator.index(_on_cpu(value)))
    except TypeError:
        refuse(owner, name, expected, value)


def real(owner: str, name: str, value: Any, expected: str = "a number") -> float:
    """`value` as a float.

    Raises:
        ValueError: "owner: name: expected .., got .." for what is no real number.
    """
    if type(value) is float:
        return value
    is_text = isinstance(value, (str, bytes, bytearray))
    is_complex = isinstance(value, Complex) and not isinstance(value, Real)
    if not is_text and not is_complex:
        try:
            return float(_on_cpu(value))
        except (TypeError, ValueError, OverflowError, RuntimeError):
            pass
    refuse(owner, name, expected, value)


def integers(owner: str, name: str, values: Any, expected: str = "integers") -> tuple[int, ...]:
    """`values`, any iterable, as a tuple of int.

    Raises:
        ValueError: "owner: name: expected .., got .." for anything else.
    """
    try:
        return tuple(int(operator.index(value)) for value in cast("Iterable[Any]", _on_cpu(values)))
    except TypeError:
        refuse(owner, name, expected, values)


def take_numbers(config: Any) -> None:
    """Turns the numbers of a frozen dataclass into int, float and tuples of int, in place.

    Raises:
        ValueError: a field holds none of what its annotation says.
    """
    owner = type(config).__name__
    for field in fields(config):
        kind, _, or_none = str(field.type).partition(" | ")
        value = getattr(config, field.name)
        if value is None and or_none:
            continue
        if kind == "int":
            value = integer(owner, field.name, value)
        elif kind == "float":
            value = real(owner, field.name, value)
        elif kind.startswith("tuple[int"):
            value = integers(owner, field.name, value)
        object.__setattr__(config, field.name, value)


def refuse(owner: str, name: str, expected: str, value: object) -> NoReturn:
    """Raises the ValueError for an argument."""
    raise ValueError(f"{owner}: {name}: expected {expected}, got {_text(value)}")


def type_name(value: object) -> str:
    """For messages: "numpy.ndarray", "list"."""
    kind = type(value)
    return f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.")


def is_on_cpu(value: Any) -> bool:
    """Whether `value` can be read at once: no array, or one on the CPU."""
    return "cpu" in str(getattr(value, "device", "cpu")).lower()  # jax: "TFRT_CPU_0"


def _on_cpu(value: Any) -> Any:
    if not is_on_cpu(value):
        raise TypeError
    return value


def _text(value: Any) -> str:
    plain = isinstance(value, (Number, str, bytes, tuple, list, type(None)))
    return repr(cast("object", value)) if plain else type_name(value)
