"""Variants of Triton kernels: what tells one compilation of a kernel from the next, on disk.

A list of them is made on a GPU by running the stages (`record`) and compiled anywhere (`fill`).
It names kernels, types and launch options, and no version: what is compiled is the kernel as it
is installed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

# Beside this file, package data.
LISTS: Final = Path(__file__).parent / "lists"

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


def frozen(value: Any) -> Any:
    """`value` with tuples for lists, which JSON makes of them."""
    return tuple(frozen(item) for item in value) if isinstance(value, list | tuple) else value


def frozen_items(items: Iterable[Any]) -> Frozen:
    return tuple((frozen(key), frozen(value)) for key, value in items)


def read(file: Path) -> list[Variant]:
    return [Variant.of_json(json.loads(line)) for line in file.read_text("utf-8").splitlines()]


def write(file: Path, variants: Iterable[Variant]) -> None:
    """Write one line per variant, each once, in an order that keeps differences small."""
    lines = sorted({json.dumps(variant.as_json()) for variant in variants})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines), "utf-8")


def known() -> list[Variant]:
    """Every variant of the lists that come with the package."""
    return sorted({v for file in LISTS.glob("*.jsonl") for v in read(file)}, key=repr)
