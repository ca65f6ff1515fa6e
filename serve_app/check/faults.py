"""What is wrong with the files that an application is started with, before it is for nothing."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from serve_app.config import Environment
from serve_app.keys import key_file
from serve_app.keys.key_file import KeyFileError


def of_keys(environment: Environment, files: Iterable[str | Path | None]) -> Iterator[str]:
    """One line for the keys of the environment, and for each file of them, that cannot be used."""
    try:
        key_file.of_environment(environment.api_keys)
    except KeyFileError as error:
        yield str(error)
    stated = (environment.api_keys_file, *files)
    for file in dict.fromkeys(Path(file).expanduser() for file in stated if file):
        try:
            key_file.read(file)
        except KeyFileError as error:
            yield str(error)


def of_model(model: str, revision: str | None) -> Iterator[str]:
    """One line where `model` cannot be served, as far as files and their headers say; of a hub id
    nothing is opened or downloaded.
    """
    from serve_app.models.checkpoint.files import folder_fault
    from serve_app.models.checkpoint.locate import fault

    found = fault(model, revision)
    folder = Path(model).expanduser()
    if found is not None:
        yield f"{model}: {found}"
    elif folder.is_dir() and (broken := folder_fault(folder)) is not None:
        yield broken
