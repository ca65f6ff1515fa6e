"""Whether somebody has agreed that their voice is used."""

from typing import Final

from serve_app.errors import InvalidRequest
from serve_app.voices.index import Snapshot
from serve_app.voices.names import is_consent_id
from serve_app.voices.values import Caller

_MAX_CHARS: Final = 128


def check_consent(
    stated: str | None, snapshot: Snapshot, caller: Caller, is_required: bool
) -> str | None:
    """The consent that is stated, a record of this library; where none is required, whatever the
    caller calls it.

    Raises:
        InvalidRequest: there is no such record, or there has to be one.
    """
    text = (stated or "").strip()
    if not text and not is_required:
        return None
    if not text:
        raise InvalidRequest(
            "A voice that is somebody's needs their recorded 'consent' here: the id of a record of"
            " /v1/audio/voice_consents.",
            "consent",
            "consent_required",
        )
    record = snapshot.consents.get(text)
    is_known = record is not None and record.is_open_to(caller)
    if not is_known and (is_required or is_consent_id(text)):
        raise InvalidRequest(
            f"The consent '{text[:80]}' does not exist.", "consent", "consent_not_found"
        )
    if len(text) > _MAX_CHARS or not text.isprintable():
        raise InvalidRequest(f"'consent' may have {_MAX_CHARS} printable characters.", "consent")
    return text
