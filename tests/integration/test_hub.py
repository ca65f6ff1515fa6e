"""What is downloaded of a checkpoint on a hub: a head node that only describes it needs no weights.

The hub is a small server here, which notes what it is asked for.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from serve_app.models.checkpoint.files import MODEL_WEIGHTS
from serve_app.models.checkpoint.locate import KNOWN_REVISIONS
from tests.conftest import TinyCheckpoint

MODEL, REVISION = next(iter(KNOWN_REVISIONS.items()))
PROGRAM = f"""
import sys
from serve_app.config import AppConfig
from serve_app.models.checkpoint import locate
from serve_app.models.checkpoint.card import describe
config = AppConfig(model={MODEL!r})
folder = getattr(locate, sys.argv[1])(config)
print(describe(config, folder).name, folder)
"""


@contextmanager
def hub(folder: Path) -> Iterator[tuple[str, set[str]]]:
    """Serves `folder` as `MODEL`; its address, and the files that were fetched from it."""
    names = sorted(str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file())
    fetched: set[str] = set()

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            if path == f"/api/models/{MODEL}/revision/{REVISION}":
                siblings = [{"rfilename": name} for name in names]
                self.answer(json.dumps({"id": MODEL, "sha": REVISION, "siblings": siblings}))
            elif path.startswith(f"/api/models/{MODEL}/tree/{REVISION}"):
                entries = [
                    {"type": "file", "path": name, "size": (folder / name).stat().st_size,
                     "oid": "0" * 40}
                    for name in names
                ]  # fmt: skip
                self.answer(json.dumps(entries))
            else:
                name = path.removeprefix(f"/{MODEL}/resolve/{REVISION}/")
                if name not in names:
                    self.send_error(404)
                    return
                if self.command == "GET":
                    fetched.add(name)
                self.answer((folder / name).read_bytes(), name)

        def answer(self, body: str | bytes, name: str = "") -> None:
            data = body.encode() if isinstance(body, str) else body
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            if name:
                self.send_header("X-Repo-Commit", REVISION)
                self.send_header("ETag", f'"{name.replace("/", "-")}"')
            else:
                self.send_header("Content-Type", "application/json")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", fetched
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("who", ["description_folder", "checkpoint_folder"])
def test_only_who_serves_a_checkpoint_downloads_its_weights(
    tiny_checkpoint: TinyCheckpoint, tmp_path: Path, who: str
) -> None:
    with hub(tiny_checkpoint()) as (address, fetched):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, who],
            env={
                **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
                "HF_ENDPOINT": address,
                "HF_HOME": str(tmp_path),
                "NO_PROXY": "127.0.0.1",
            },
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [MODEL, str(next(tmp_path.rglob(REVISION)))]
    assert "config.json" in fetched
    assert (MODEL_WEIGHTS in fetched) == (who == "checkpoint_folder")
