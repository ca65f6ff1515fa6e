"""A real browser on the playground, whose server has fake stages."""

import asyncio
import os
import shutil
import sys
import threading
from pathlib import Path

from serve_app.fakes import fake_card

CARDS = (
    fake_card(),
    fake_card(name="qwen3-tts-plain", path="fakes/qwen3-tts-plain", supports_instructions=False),
    fake_card(
        name="qwen3-tts-design",
        path="fakes/qwen3-tts-design",
        task="voice_design",
        voices=(),
        voice_sources=frozenset({"description"}),
    ),
)
# Notes what is given to the loudspeakers, and when.
LISTEN = """
window.heard = [];
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (at) {
  heard.push({ at, seconds: this.buffer.duration, samples: [...this.buffer.getChannelData(0)] });
  return start.apply(this, arguments);
};
"""


def chromium():
    """Path of a Chromium on this machine, or None; CHROMIUM names another.

    Where there is none, `scripts/chromium.sh` has put one beside the packages.
    """
    fetched = Path(sys.prefix) / "chromium" / "run"
    names = ("chromium", "chromium-browser", "google-chrome", "chrome", str(fetched))
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


class Gate:
    """Lets a talker make `frames` frames, and the rest when it is opened; from any thread."""

    def __init__(self, frames):
        self._left = frames
        self._opened = threading.Event()

    async def __call__(self, seconds):
        self._left -= 1
        while self._left < 0 and not self._opened.is_set():
            await asyncio.sleep(0.01)

    def open(self):
        self._opened.set()


class Visit:
    """A page that is open, and everything that went wrong in it."""

    def __init__(self, browser, url, path="/web/", seen="#voice option", **options):
        self.url = url
        self.complaints = []
        self.elsewhere = []
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(20_000)
        self.page.add_init_script(LISTEN)
        self.page.on("console", self._on_console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._on_request)
        self.page.goto(f"{url}{path}")
        self.page.locator(seen).first.wait_for(state="attached")

    def _on_console(self, message):
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def _on_request(self, request):
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.elsewhere.append(request.url)

    def heard(self):
        """What was given to the loudspeakers: {at, seconds, samples}."""
        return self.page.evaluate("heard")

    def forget(self):
        self.page.evaluate("heard.length = 0")

    def speak(self):
        """Click, and return the body of the request that this sends."""
        with self.page.expect_request("**/v1/audio/speech") as sent:
            self.page.click("#speak")
        return sent.value.post_data_json
