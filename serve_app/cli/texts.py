"""The text to speak, in pieces that one request may have."""

import codecs
import errno
import os
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Final

# What OpenAI's own API takes at once.
MAX_CHARS: Final = 4096
_READ_BYTES: Final = 1 << 16
# How long a line waits for the next one.
_TOGETHER_S: Final = 0.02


def cut(text: str, limit: int = MAX_CHARS) -> Iterator[str]:
    """Pieces of at most `limit` characters: paragraphs together, else cut at a line, a sentence, a
    word, and only then within one.
    """
    rest = text.strip()
    while len(rest) > limit:
        at = next(
            (
                found + len(mark)
                for mark in ("\n\n", "\n", ". ", "! ", "? ", "。", " ")
                # A piece of a few words would cost a request and a pause of its own.
                if (found := rest.rfind(mark, limit // 2, limit)) > 0
            ),
            limit,
        )
        piece, rest = rest[:at].strip(), rest[at:].strip()
        if piece:
            yield piece
    if rest:
        yield rest


def as_it_comes(descriptor: int) -> Iterator[str]:
    """Pieces of a text that is still being written, whole lines each.

    Lines that come together are taken together: a file in a pipe comes at once, whatever its lines
    are, and a chat line by line.
    """
    chunks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        # Not through `sys.stdin`, whose lock a thread that is left reading would keep to the end.
        while chunk := os.read(descriptor, _READ_BYTES):
            chunks.put(chunk)
        chunks.put(b"")

    # A daemon: nothing wakes it from a read that nobody answers.
    threading.Thread(target=read, daemon=True).start()
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    rest, ended = "", False
    while not ended:
        chunk = chunks.get()
        while chunk:
            rest += decoder.decode(chunk)
            try:
                chunk = chunks.get(timeout=_TOGETHER_S)
            except queue.Empty:
                break
        ended = not chunk
        complete, newline, rest = rest.rpartition("\n")
        yield from cut(complete + newline + rest if ended else complete)


def pieces(text: list[str], file: str | None) -> Iterator[str]:
    """What the options name: the words of the command line, a file, or standard input.

    Raises:
        OSError: the file cannot be read, or is no text.
    """
    if text:
        yield from cut(" ".join(text))
    elif file and file != "-":
        try:
            with open(file, encoding="utf-8") as stream:
                whole = stream.read()
        except UnicodeDecodeError as error:
            raise OSError(errno.EILSEQ, "is no text in UTF-8", file) from error
        yield from cut(whole)
    else:
        yield from as_it_comes(sys.stdin.fileno())
