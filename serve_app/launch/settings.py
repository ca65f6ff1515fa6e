"""What the server is started with: the config file with what the command line and the environment
say.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from serve_app import serve_config
from serve_app.config import Environment
from serve_app.launch import ahead, configs, overrides

_LAST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Start:
    """What the command line says: a config file, and what counts in place of the file's and of the
    environment's.
    """

    config: str
    models: tuple[str, ...] = ()
    only_print: bool = False
    host: str | None = None
    port: int | None = None
    profile: str | None = None

    def settings(self) -> dict[str, Any]:
        """The whole configuration, checked, as it is now.

        Raises:
            ValueError: file, command line or environment have a fault.
        """
        environment = Environment.read()
        config = serve_config.load(configs.located(self.config))
        if self.models:
            config = overrides.with_models(config, self.models, ahead.gpus())
        else:
            config = overrides.with_model(config, environment.model, environment.revision)
        config = overrides.with_profile(config, self.profile or environment.profile)
        port = environment.port if self.port is None else self.port
        if port is not None and not 0 < port <= _LAST_PORT:
            raise ValueError(f"port {port} is not between 1 and {_LAST_PORT}")
        config = overrides.with_address(config, self.host or environment.host, port)
        problems = list(serve_config.find_problems(config))
        if problems:
            raise serve_config.ServeConfigError(self.config, problems)
        return config


class _Parser(argparse.ArgumentParser):
    """Says what is wrong without ending the process."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse(arguments: Sequence[str], default: str) -> Start:
    """Read the command line of the server.

    Raises:
        ValueError: it is wrong; says how.
    """
    parser = _Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("config", nargs="?", default=default)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--profile")
    parser.add_argument("--print-config", action="store_true")
    found = parser.parse_args(arguments)
    return Start(
        found.config, tuple(found.model), found.print_config, found.host, found.port, found.profile
    )
