"""API keys and their digests; only digests are written anywhere.

A key made here has 256 random bits, so that a plain hash of it cannot be searched for: what slows
down the guessing of passwords would only slow down every request. The digest names its algorithm
(`sha256:` and 64 hexadecimal digits), so that another one can come beside it.
"""

import hashlib
import hmac
import re
import secrets
from typing import Final

PREFIX: Final = "sk-tts-"
ALGORITHM: Final = "sha256"
_DIGEST: Final = re.compile(rf"{ALGORITHM}:[0-9a-f]{{64}}")
_SECRET_BYTES: Final = 32


def make_key() -> str:
    """A new key."""
    return PREFIX + secrets.token_urlsafe(_SECRET_BYTES)


def digest_of(key: str) -> str:
    # A header may hold what is no UTF-8; it is no key then, and must not be an error either.
    data = key.encode("utf-8", "surrogatepass")
    return f"{ALGORITHM}:{hashlib.new(ALGORITHM, data).hexdigest()}"


def is_digest(text: str) -> bool:
    return _DIGEST.fullmatch(text) is not None


def same(left: str, right: str) -> bool:
    """Compare two digests in a time that does not depend on where they differ."""
    return hmac.compare_digest(left.encode("ascii"), right.encode("ascii"))
