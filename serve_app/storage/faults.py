"""What is said of a storage that fails: the one translation of its errors, for all that is kept."""

import errno
import logging

from serve_app.errors import StorageAway, StorageFull

logger = logging.getLogger(__name__)


def full(what: str) -> StorageFull:
    """There is no room for more of `what`, which says a kind of thing: "voices"."""
    return StorageFull(f"The server has no room for more {what}.")


def away(what: str) -> StorageAway:
    return StorageAway(f"The server cannot read or write its {what} at the moment.")


def fault(error: OSError, what: str) -> StorageFull | StorageAway:
    """What a client is told of `error`, whose paths are for the log."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        logger.error("there is no room for more %s: %s", what, error)
        return full(what)
    logger.error("cannot read or write %s: %r", what, error)
    return away(what)
