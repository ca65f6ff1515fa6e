"""What a realtime session speaks with, and how its fields read as those of a speech request."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from serve_app.audio.g711 import a_law, mu_law
from serve_app.errors import InvalidRequest

_MIN_SPEED: Final = 0.25
_MAX_SPEED: Final = 1.5
_PCM_HZ: Final = 24000
# What becomes of 16 bit samples, by the name of the format, and at which rate.
_FORMATS: Final[Mapping[str, tuple[int, Callable[[bytes], bytes]]]] = {
    "audio/pcm": (_PCM_HZ, lambda data: data),
    "audio/pcmu": (8000, lambda data: mu_law(np.frombuffer(data, "<i2"))),
    "audio/pcma": (8000, lambda data: a_law(np.frombuffer(data, "<i2"))),
}


@dataclass(frozen=True, slots=True)
class Output:
    """`audio.output` of a session or a response.

    Attributes:
        voice: as a speech request takes it; None: the default one.
        style: how to speak (an extension). A session's `instructions` are for a model that thinks
            of an answer, and are not passed on.
    """

    voice: Any = None
    format: str = "audio/pcm"
    speed: float = 1.0
    style: str | None = None

    def changed(self, session: Any, where: str) -> "Output":
        """This with the `audio.output` of `session` (a session or a response); null and absent
        fields stay as they were.

        Raises:
            InvalidRequest: a field of it is wrong.
        """
        output = _object(_object(session, where).get("audio"), f"{where}.audio").get("output")
        where = f"{where}.audio.output"
        fields = _object(output, where)
        stated: dict[str, Any] = {
            name: fields[name] for name in ("voice", "style") if fields.get(name) is not None
        }
        if not isinstance(stated.get("style", ""), str):
            raise InvalidRequest(f"'{where}.style' must be a string.", f"{where}.style")
        if fields.get("format") is not None:
            stated["format"] = _format(fields["format"], f"{where}.format")
        speed = fields.get("speed")
        if speed is not None:
            is_number = isinstance(speed, int | float) and not isinstance(speed, bool)
            if not is_number or not _MIN_SPEED <= speed <= _MAX_SPEED:
                message = f"'{where}.speed' must be between {_MIN_SPEED} and {_MAX_SPEED}."
                raise InvalidRequest(message, f"{where}.speed")
            stated["speed"] = float(speed)
        return replace(self, **stated)

    def request(self, model: str | None) -> dict[str, Any]:
        """The fields of a speech request that this is."""
        return {
            "model": model,
            "voice": self.voice,
            "speed": self.speed,
            "instructions": self.style,
            "response_format": "pcm",
            "sample_rate": _FORMATS[self.format][0],
        }

    def encoded(self, data: bytes) -> bytes:
        """16 bit samples in this format."""
        return _FORMATS[self.format][1](data)

    def shown(self) -> dict[str, Any]:
        """As the API shows it."""
        rate = {"rate": _PCM_HZ} if self.format == "audio/pcm" else {}
        voice = self.voice or "alloy"
        return {"format": {"type": self.format, **rate}, "voice": voice, "speed": self.speed}


def model_name(stated: str | None) -> str | None:
    """What a speech request calls the model; OpenAI's realtime models stand for the default."""
    return None if not stated or "realtime" in stated.casefold() else stated


def _format(value: Any, where: str) -> str:
    fields = _object(value, where)
    name = fields.get("type")
    if not isinstance(name, str) or name not in _FORMATS:
        raise InvalidRequest(f"'{where}.type' must be one of {', '.join(_FORMATS)}.", where)
    if name == "audio/pcm" and fields.get("rate") not in (None, _PCM_HZ):
        raise InvalidRequest(f"'{where}.rate' must be {_PCM_HZ}.", f"{where}.rate")
    return name


def _object(value: Any, where: str) -> Mapping[str, Any]:
    """`value`, which must be an object; {} for nothing."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(f"'{where}' must be an object.", where)
    return value
