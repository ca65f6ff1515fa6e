"""JSON objects of configuration files, read strictly: an error names file and key."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve_app.errors import CheckpointError


@dataclass(frozen=True, slots=True)
class Section:
    """One JSON object of a file; every read names the file and the key when it fails."""

    file: str
    where: str
    data: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, name: str) -> "Section":
        file = path / name
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or str(error)
            raise CheckpointError(str(file), f"cannot be read: {reason}") from error
        except ValueError as error:
            raise CheckpointError(str(file), f"is not valid JSON: {error}") from error
        if not isinstance(data, dict):
            raise CheckpointError(str(file), f"must hold a JSON object, not {type(data).__name__}")
        return cls(str(file), "", data)

    def fail(self, key: str, reason: str) -> CheckpointError:
        return CheckpointError(self.file, f"{self.where}{key} {reason}")

    def value(self, key: str) -> Any:
        if key not in self.data:
            raise self.fail(key, "is missing")
        return self.data[key]

    def section(self, key: str) -> "Section":
        value = self.value(key)
        if not isinstance(value, dict):
            raise self.fail(key, f"must be an object, not {value!r}")
        return Section(self.file, f"{self.where}{key}.", value)

    def integer(self, key: str) -> int:
        value = self.value(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.fail(key, f"must be an integer, not {value!r}")
        return value

    def number(self, key: str) -> float:
        value = self.value(key)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.fail(key, f"must be a number, not {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.value(key)
        if not isinstance(value, bool):
            raise self.fail(key, f"must be true or false, not {value!r}")
        return value

    def text(self, key: str) -> str:
        value = self.value(key)
        if not isinstance(value, str):
            raise self.fail(key, f"must be a string, not {value!r}")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.value(key)
        if not isinstance(value, list) or not all(type(item) is int for item in value):
            raise self.fail(key, f"must be a list of integers, not {value!r}")
        return tuple(value)

    def ids(self, key: str) -> dict[str, int]:
        section = self.section(key)
        return {name.lower(): section.integer(name) for name in section.data}

    def require(self, key: str, *supported: object) -> None:
        value = self.value(key)
        if value not in supported:
            names = " or ".join(repr(item) for item in supported)
            raise self.fail(key, f"is {value!r}; supported: {names}")
