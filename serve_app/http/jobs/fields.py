"""The fields of a request for a long text, which may be JSON or the text as it is."""

import contextlib
from typing import Any, Final

from fastapi import Request

from serve_app.errors import InvalidRequest
from serve_app.http.speech.body import read_json

# Of a text that comes as it is, the fields stand in the query; those that are numbers:
_NUMBERS: Final = ("speed", "sample_rate", "seed", "temperature", "top_k", "top_p")


def fields_of(raw: bytes, http: Request) -> dict[str, Any]:
    """The fields of JSON, or those of the query around a text that comes as it is.

    Raises:
        InvalidRequest: it is neither.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "text/plain":
        return dict(read_json(raw))
    fields: dict[str, Any] = dict(http.query_params)
    try:
        fields["input"] = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequest("The text is not UTF-8.", "input") from error
    for name in _NUMBERS:
        with contextlib.suppress(KeyError, ValueError):
            number = float(fields[name])
            fields[name] = int(number) if number.is_integer() else number
    return fields
