"""What a check of the machine has found."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "note", "missing"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact of this machine.

    Attributes:
        area: machine, gpu, packages, audio, ports, keys, folders, ray, checkpoint.
        state: `note` is worth knowing; what is `missing` keeps the server from working.
        says: the fact.
        remedy: what to do about it, as one line or one command.
    """

    area: str
    state: State
    says: str
    remedy: str = ""
