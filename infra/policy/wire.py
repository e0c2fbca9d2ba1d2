"""Resource properties as the engine sends them: plain JSON in camelCase, secrets wrapped by a signature."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SIGNATURE = "4dabf18193072939515e22adb298388d"  # the key that tells a wrapped value from a plain object
SECRET = "1b47061264138c4ac30d75fd1eb44270"
OUTPUT = "d0e6a833031e9bbcd3f4e8bde6ca49a4"  # an output sent whole: it says itself whether it is secret


def is_secret(value: Any) -> bool:
    """Whether the engine will encrypt this value."""
    if not isinstance(value, Mapping):
        return False
    return value.get(SIGNATURE) == SECRET or (value.get(SIGNATURE) == OUTPUT and value.get("secret") is True)


def unwrapped(value: Any) -> Any:
    """The same value with what secrets and outputs hold in their place."""
    if isinstance(value, Mapping):
        if value.get(SIGNATURE) in (SECRET, OUTPUT):
            return unwrapped(value.get("value"))
        return {key: unwrapped(inner) for key, inner in value.items()}
    return [unwrapped(inner) for inner in value] if is_list(value) else value


def is_list(value: Any) -> bool:
    """Whether this is a list: the policy SDK hands out sequences of its own."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def at(value: Any, *path: str) -> Any:
    """What stands at a path of keys, None where there is nothing."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def objects(value: Any, *path: str) -> list[Mapping[str, Any]]:
    """The objects of the list at a path, none where there is no list."""
    found = at(value, *path)
    return [one for one in found if isinstance(one, Mapping)] if is_list(found) else []


def strings(value: Any, *path: str) -> list[str]:
    """The strings of the list at a path, none where there is no list."""
    found = at(value, *path)
    return [one for one in found if isinstance(one, str)] if is_list(found) else []


def plain(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is not secret, with its path: `spec.containers[0].image`."""
    if is_secret(value):
        return
    if isinstance(value, Mapping):
        if value.get(SIGNATURE) == OUTPUT:
            yield from plain(value.get("value"), path)
            return
        for key in value:
            yield from plain(value[key], f"{path}.{key}" if path else key)
    elif is_list(value):
        for index, inner in enumerate(value):
            yield from plain(inner, f"{path}[{index}]")
    else:
        yield path, value
