"""The configuration of a server under test: a placement's config file with changes applied."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

import yaml

from load_tests.servers.child import REPOSITORY
from serve_app.launch.overrides import with_profile

CONFIGS: Final = {"split": "configs/serve.yaml", "fused": "configs/serve.fused.yaml"}


def configured(
    placement: str, overrides: Sequence[str], capacity: int | None, profile: str | None = None
) -> dict[str, Any]:
    """The placement's config file with `profile`, `capacity` and then `overrides` applied."""
    config = yaml.safe_load((REPOSITORY / CONFIGS[placement]).read_text(encoding="utf-8"))
    config = with_profile(config, profile)
    for setting in [*capacity_overrides(capacity), *overrides]:
        where, colon, rest = setting.partition(":")
        if colon and where in CONFIGS:
            if where != placement:
                continue
            setting = rest
        override(config, setting)
    return config


def capacity_overrides(capacity: int | None) -> Iterator[str]:
    """What has to change together for one replica of each stage to carry `capacity` streams."""
    if capacity is not None:
        yield f"talker.max_num_seqs={capacity}"
        yield f"speech_decoder.max_streams={capacity}"


def override(config: dict[str, Any], setting: str) -> None:
    """Set `key=value` (YAML) in the application's args, or in `deployments.NAME.key=value`.

    Raises:
        ValueError: not of this form, or no such deployment.
    """
    key, equals, text = setting.partition("=")
    if not equals:
        raise ValueError(f"not KEY=VALUE: {setting!r}")
    application = config["applications"][0]
    path = key.split(".")
    target = application.setdefault("args", {})
    if path[0] == "deployments" and len(path) > 2:
        named = {deployment["name"]: deployment for deployment in application["deployments"]}
        if path[1] not in named:
            raise ValueError(f"no deployment {path[1]!r}; there are {', '.join(named)}")
        target, path = named[path[1]], path[2:]
    for part in path[:-1]:
        target = target.setdefault(part, {})
    target[path[-1]] = yaml.safe_load(text)
