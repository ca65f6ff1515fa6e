"""The fields of a request for a long text, which may be JSON or the text as it is."""

from typing import Any

from fastapi import Request

from serve_app.errors import InvalidRequest
from serve_app.http.speech.body import read_json


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
    return fields
