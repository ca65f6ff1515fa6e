"""Variants of Triton kernels: what tells one compilation of a kernel from the next, on disk.

A list of them is made on a GPU by running the stages (`record`) and compiled anywhere (`fill`).
It names kernels, types and launch options: what is compiled is the kernel as it is installed. Its
first line says what it was recorded with, since another compiler may want other variants.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Final, TypeAlias

# Beside this file, package data.
LISTS: Final = Path(__file__).parent / "lists"
# Whose kernels are in the lists, and what compiles them.
_PACKAGES: Final = ("triton", "vllm")
# From this compute capability on, times ten, a kernel may begin before the one before it has ended.
OVERLAPS: Final = 90
_RECORDED_WITH: Final = "recorded_with"

Frozen: TypeAlias = tuple[tuple[Any, Any], ...]


@dataclass(frozen=True, slots=True)
class Variant:
    """One compilation of one kernel.

    Attributes:
        module: where the kernel is defined.
        name: its qualified name there.
        signature: type of each argument, by name.
        constants: compile-time values, by place; a data type as ("dtype", name).
        attributes: what is known of arguments, such as their divisibility, by place.
        options: of the launch, where they are not Triton's default for the device.
    """

    module: str
    name: str
    signature: Frozen
    constants: Frozen
    attributes: Frozen
    options: Frozen

    def as_json(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "name": self.name,
            "signature": dict(self.signature),
            "constants": [[list(place), value] for place, value in self.constants],
            "attributes": [[list(place), value] for place, value in self.attributes],
            "options": dict(self.options),
        }

    @classmethod
    def of_json(cls, data: Mapping[str, Any]) -> "Variant":
        return cls(
            data["module"],
            data["name"],
            frozen_items(data["signature"].items()),
            frozen_items(data["constants"]),
            frozen_items(data["attributes"]),
            frozen_items(data["options"].items()),
        )


def fitting(variant: Variant, capability: int) -> Variant:
    """`variant` as a card of that compute capability launches it.

    Those of the lists are Hopper's; before it no kernel overlaps the next (`layers/launch.py`).
    """
    if capability >= OVERLAPS:
        return variant
    places = {(place,) for place, (name, _) in enumerate(variant.signature) if name == "pdl"}
    return replace(
        variant,
        constants=tuple((at, at not in places and value) for at, value in variant.constants),
        options=tuple(option for option in variant.options if option[0] != "launch_pdl"),
    )


def frozen(value: Any) -> Any:
    """`value` with tuples for lists, which JSON makes of them."""
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value


def frozen_items(items: Iterable[Any]) -> Frozen:
    return tuple((frozen(key), frozen(value)) for key, value in items)


def versions() -> dict[str, str]:
    """Of the packages that variants depend on, as installed here."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:  # importable all the same, from a PYTHONPATH
            found[package] = ""
    return found


def read(file: Path) -> list[Variant]:
    lines = map(json.loads, file.read_text("utf-8").splitlines())
    return [Variant.of_json(line) for line in lines if _RECORDED_WITH not in line]


def recorded_with(file: Path) -> dict[str, str]:
    """The versions that a list was recorded with; empty where it does not say."""
    with file.open(encoding="utf-8") as lines:
        first = json.loads(next(lines, "{}"))
    return first.get(_RECORDED_WITH, {})


def write(file: Path, variants: Iterable[Variant]) -> None:
    """Write one line per variant, each once, in an order that keeps differences small."""
    lines = sorted({json.dumps(variant.as_json()) for variant in variants})
    lines.insert(0, json.dumps({_RECORDED_WITH: versions()}))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def known() -> list[Variant]:
    """Every variant of the lists that come with the package."""
    return sorted({v for file in LISTS.glob("*.jsonl") for v in read(file)}, key=repr)
