"""What the server is started with: the config file with what the command line and the environment
say.
"""

from dataclasses import dataclass
from typing import Any

from serve_app import serve_config
from serve_app.config import Environment
from serve_app.launch import ahead, configs, overrides


@dataclass(frozen=True, slots=True)
class Start:
    """What the command line says: a config file, and models in place of the file's."""

    config: str
    models: tuple[str, ...] = ()
    only_print: bool = False

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
        config = overrides.with_profile(config, environment.profile)
        config = overrides.with_address(config, environment.host, environment.port)
        problems = list(serve_config.find_problems(config))
        if problems:
            raise serve_config.ServeConfigError(self.config, problems)
        return config


def parse(arguments: list[str], default: str) -> Start | None:
    """Read the command line of the server; None: it is wrong."""
    names: list[str] = []
    models: list[str] = []
    only_print = False
    left = list(arguments)
    while left:
        argument = left.pop(0)
        option, given, value = argument.partition("=")
        if option == "--model":
            if not given and not left:
                return None
            models.append(value if given else left.pop(0))
        elif argument == "--print-config":
            only_print = True
        elif argument.startswith("-"):
            return None
        else:
            names.append(argument)
    if len(names) > 1:
        return None
    return Start(names[0] if names else default, tuple(models), only_print)
