"""The file of API keys: YAML, a list of entries with a name and a digest each.

    keys:
      - name: livekit
        hash: sha256:9f86d0...
        requests_per_minute: 600   # optional, like what follows
        concurrent: 16
        priority: 1

`python -m serve_app keys` writes it.
"""

from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import Field, ValidationError, field_validator

from serve_app.config import Strict
from serve_app.keys.digest import digest_of, is_digest


class KeyFileError(ValueError):
    """A file of keys cannot be used; what it says never quotes a key."""


class Key(Strict):
    """Who may come in, and how often.

    Attributes:
        hash: of the key; see `digest`.
        requests_per_minute, concurrent: of requests for speech; None: what `ingress.access` says.
        priority: who comes in where there is not room for all; a higher one has the last places.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9_.@-]{1,64}$")
    hash: str
    requests_per_minute: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    concurrent: int | None = Field(default=None, ge=1)
    priority: int = Field(default=0, ge=-100, le=100)

    @field_validator("hash")
    @classmethod
    def _is_digest(cls, value: str) -> str:
        if not is_digest(value):
            raise ValueError("must be sha256: and 64 hexadecimal digits, not the key itself")
        return value


class _File(Strict):
    keys: tuple[Key, ...] = ()


def read(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        KeyFileError: it cannot be read, or is no list of keys, or has a name or a key twice.
    """
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        keys = _File.model_validate({} if data is None else data).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise KeyFileError(f"{path}: {where}: {first['msg']}") from None
    except yaml.YAMLError:
        # Its message quotes the file, in which somebody may have put a key.
        raise KeyFileError(f"{path}: not valid YAML") from None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyFileError(f"{path}: {getattr(error, 'strerror', None) or 'not UTF-8'}") from None
    return _unique(keys, str(path))


def of_environment(value: str | None) -> tuple[Key, ...]:
    """The keys of TTS_API_KEY, which has them as they are, separated by commas or spaces.

    Raises:
        KeyFileError: one is there twice, or it is set and has none, which would let everybody in.
    """
    plain = (value or "").replace(",", " ").split()
    if value and not plain:
        raise KeyFileError("TTS_API_KEY is set and has no key in it")
    named = [f"env-{number}" if number > 1 else "env" for number in range(1, len(plain) + 1)]
    keys = (Key(name=name, hash=digest_of(key)) for name, key in zip(named, plain, strict=True))
    return _unique(keys, "TTS_API_KEY")


def write(path: Path, keys: Iterable[Key]) -> None:
    """Replace the file in one step, readable for its owner alone.

    Raises:
        KeyFileError: it cannot be written.
    """
    entries = [key.model_dump(exclude_defaults=True) for key in keys]
    text = yaml.safe_dump({"keys": entries}, sort_keys=False, allow_unicode=True)
    part = path.with_name(path.name + ".part")
    try:
        part.touch(mode=0o600)
        part.chmod(0o600)
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written: {error.strerror}") from None


def _unique(keys: Iterable[Key], place: str) -> tuple[Key, ...]:
    found = tuple(keys)
    for field in ("name", "hash"):
        values = [getattr(key, field) for key in found]
        for index, value in enumerate(values):
            if value in values[:index]:
                raise KeyFileError(f"{place}: the {field} of {found[index].name!r} is there twice")
    return found
