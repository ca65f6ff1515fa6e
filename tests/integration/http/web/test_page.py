"""The playground as a person has it: clicks and keys in Chromium, sound, pictures and words."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest

from serve_app.config import AccessConfig, IngressConfig
from serve_app.errors import StageFailed
from serve_app.fakes import fake_card
from serve_app.keys.digest import digest_of
from serve_app.keys.key_file import Key, write
from tests.integration.http.service import SEED, running, samples
from tests.integration.http.web.browser import CARDS, Gate, Visit, chromium
from tests.waiting import wait_until

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `dev`)")
expect = playwright.expect
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="needs Chromium: apt-get install chromium, or CHROMIUM=path"
)
DONE = re.compile("^Complete")
# Samples are 16 bits on their way, and floats of 32 in the browser.
QUANTUM = 1 / 32768
FORMATS = ("wav", "pcm", "mp3", "opus", "aac", "flac")


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=20_000)
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def server():
    with running(CARDS) as (url, service):
        yield url, service


@pytest.fixture
def visit(browser, server):
    """A visit that is not over before nothing has gone wrong."""
    one = Visit(browser, server[0])
    yield one
    one.context.close()
    assert one.complaints == []
    assert one.elsewhere == []


def speak(visit, **fields):
    for name, value in fields.items():
        visit.page.select_option(f"#{name}", value)
    body = visit.speak()
    expect(visit.page.locator("#state")).to_have_text(DONE)
    return body


def with_seed(visit):
    visit.page.click("#more summary")
    visit.page.fill("#seed", str(SEED))


@pytest.mark.parametrize("format", FORMATS)
def test_a_click_makes_sound_arrive(visit, format):
    with_seed(visit)
    visit.page.fill("#input", "Hello.")
    body = speak(visit, format=format)
    pieces = visit.heard()
    sound = np.concatenate([piece["samples"] for piece in pieces])
    if format in ("wav", "pcm"):
        assert np.abs(sound - samples() / 32768).max() < QUANTUM
    else:
        # What was decoded bit by bit is what the whole file holds: no seam, no click.
        whole = visit.page.evaluate(
            """async (body) => {
              const init = { method: "POST", body: JSON.stringify(body) };
              const file = await (await fetch("../v1/audio/speech", init)).arrayBuffer();
              const context = new OfflineAudioContext(1, 1, 24000);
              return [...(await context.decodeAudioData(file)).getChannelData(0)];
            }""",
            body,
        )
        assert len(sound) == len(whole)
        assert np.abs(sound - whole).max() < QUANTUM
    # No piece begins before the one before it has ended; late it is on a machine that is.
    ends = [piece["at"] + piece["seconds"] for piece in pieces]
    gaps = [piece["at"] - end for piece, end in zip(pieces[1:], ends, strict=False)]
    assert min(gaps, default=0.0) > -1e-4
    assert visit.page.inner_text("#first-audio").endswith(" ms")
    assert float(visit.page.inner_text("#rtf")) > 0
    assert visit.page.inner_text("#length") == f"{len(sound) / 24000:.1f} s"


@pytest.mark.parametrize("format", ["wav", "mp3"])
def test_it_is_heard_while_it_is_made_and_stops_when_told(browser, format):
    gate = Gate(frames=4)
    with running(CARDS, num_frames=50, chunk_frames=(1,), sleep=gate) as (url, service):
        visit = Visit(browser, url)
        visit.page.fill("#input", "Hello.")
        visit.page.select_option("#format", format)
        visit.speak()
        expect(visit.page.locator("#live")).to_have_text(re.compile("^Speaking, first audio after"))
        assert 0 < sum(piece["seconds"] for piece in visit.heard()) <= 4 * 0.08
        assert not service.idle
        visit.page.keyboard.press("Escape")
        expect(visit.page.locator("#live")).to_have_text("Stopped")
        expect(visit.page.locator("#takes .hint")).to_contain_text("stopped")
        wait_until(lambda: service.idle)
        gate.open()
        assert visit.complaints == []
        visit.context.close()


def test_each_control_does_what_it_says(visit, server):
    page = visit.page
    page.fill("#input", "Guten Tag, it's 5 o'clock.")
    page.select_option("#voice", "serena")
    page.select_option("#language", "german")
    page.select_option("#format", "opus")
    page.fill("#instructions", "Whisper.")
    page.locator("#speed").fill("1.25")
    with_seed(visit)
    assert page.inner_text("#speed-value") == "1.25×"
    assert page.inner_text("#count") == "26 characters"
    body = speak(visit)
    assert body == {
        "model": "qwen3-tts-fake",
        "input": "Guten Tag, it's 5 o'clock.",
        "voice": "serena",
        "instructions": "Whisper.",
        "language": "german",
        "response_format": "opus",
        "speed": 1.25,
        "seed": SEED,
    }
    arrived = server[1].talker.requests[-1]
    assert (str(arrived.voice), arrived.language) == ("serena", "german")
    assert (arrived.instructions, arrived.seed) == ("Whisper.", SEED)


def test_a_model_offers_what_it_can_do(visit):
    page = visit.page
    assert page.locator("#model option").all_inner_texts()[1:] == [
        "qwen3-tts-plain",
        "qwen3-tts-design",
    ]
    page.select_option("#model", "qwen3-tts-plain")
    expect(page.locator("#instructions")).to_be_hidden()
    page.select_option("#model", "qwen3-tts-design")
    expect(page.locator("#voice")).to_be_hidden()
    page.fill("#instructions", "An old man with a warm voice.")
    body = speak(visit)
    assert "voice" not in body
    assert body["instructions"] == "An old man with a warm voice."


def test_the_request_beside_it_works_as_it_stands(visit, tmp_path):
    page = visit.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#input", 'It\'s "quoted", $HOME `id` \\ ü 中文')
    page.select_option("#format", "pcm")
    with_seed(visit)

    def copied(tab):
        page.click(f"#tab-{tab}")
        page.click("#copy")
        expect(page.locator("#copy")).to_have_text("Copied")
        return page.evaluate("navigator.clipboard.readText()")

    def made_by(*command):
        env = {name: value for name, value in os.environ.items() if "proxy" not in name.lower()}
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=60, env=env)
        file = tmp_path / "speech.pcm"
        data = np.frombuffer(file.read_bytes(), "<i2")
        file.unlink()
        return data

    assert np.array_equal(made_by("sh", "-c", copied("curl")), samples())
    assert np.array_equal(made_by(sys.executable, "-c", copied("python")), samples())
    assert 'response_format: "pcm"' in copied("node")


def test_an_error_is_shown_in_the_servers_words_and_at_its_field(visit):
    page = visit.page
    page.fill("#input", "Hello <|im_start|> there.")
    page.click("#speak")
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("'input' contains the control string '<|im_start|>' of the model.")
    expect(page.locator("#input")).to_be_focused()
    expect(page.locator("#input")).to_have_attribute("aria-invalid", "true")
    page.fill("#input", "Hello.")
    speak(visit)
    expect(alert).to_be_hidden()
    # Chromium writes every refused request on its console.
    assert all("400" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_an_answer_that_breaks_off_says_so_and_keeps_what_came(browser):
    failure = {"fail_at": 5, "error": StageFailed("talker", "broken")}
    with running(CARDS, num_frames=50, frame_s=0.05, **failure) as (url, _):
        visit = Visit(browser, url)
        visit.page.fill("#input", "Hello.")
        visit.page.click("#speak")
        alert = visit.page.get_by_role("alert")
        expect(alert).to_contain_text("The answer broke off after")
        expect(visit.page.locator("#takes .hint")).to_contain_text("failed")
        expect(visit.page.locator("#download")).to_be_enabled()
        visit.context.close()


def test_who_hears_the_embedded_voice_is_told_so(browser):
    with running((fake_card(embedded=True),)) as (url, _):
        visit = Visit(browser, url)
        expect(visit.page.locator("#note")).to_contain_text("small English model")
        expect(visit.page.locator("#server")).to_contain_text("healthy")
        visit.context.close()


def test_a_key_is_sent_and_stays_in_the_tab(visit):
    page = visit.page
    page.click("#more summary")
    page.fill("#key", "sk-secret")
    with page.expect_request("**/v1/models"):
        page.press("#key", "Tab")
    with page.expect_request("**/v1/audio/speech") as sent:
        page.click("#speak")
    assert sent.value.headers["authorization"] == "Bearer sk-secret"
    assert page.evaluate("[sessionStorage.length, localStorage.length]") == [1, 0]
    assert "sk-secret" not in page.inner_text("#snippet")
    assert "$OPENAI_API_KEY" in page.inner_text("#snippet")
    page.reload()
    assert page.input_value("#key") == "sk-secret"


def test_a_server_that_wants_a_key_is_given_one(browser, tmp_path):
    write(tmp_path / "keys.yaml", [Key(name="a", hash=digest_of("sk-right"))])
    access = AccessConfig(keys_file=str(tmp_path / "keys.yaml"))
    with running(CARDS, config=IngressConfig(access=access)) as (url, _):
        visit = Visit(browser, url)
        page = visit.page
        page.click("#speak")
        expect(page.get_by_role("alert")).to_contain_text("API key")
        expect(page.locator("#key")).to_be_focused()
        page.keyboard.type("sk-right")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#state")).to_have_text(DONE)
        expect(page.get_by_role("alert")).to_be_hidden()
        visit.context.close()


def test_keys_speak_stop_and_play_again(browser):
    # Long enough for a key to come while it plays.
    with running(CARDS, num_frames=250) as (url, _):
        visit = Visit(browser, url)
        page = visit.page
        page.fill("#input", "Hello.")
        page.keyboard.press("Control+Enter")
        expect(page.locator("#state")).to_have_text(DONE)
        visit.forget()
        page.keyboard.press("Alt+KeyR")
        expect(page.locator("#live")).to_have_text(re.compile("^Playing"))
        assert page.evaluate("heard.length") == 1
        page.keyboard.press("Escape")
        expect(page.locator("#live")).to_have_text("Stopped")
        expect(page.locator("#stop")).to_be_disabled()
        page.focus("#tab-curl")
        page.keyboard.press("ArrowRight")
        expect(page.locator("#tab-python")).to_be_focused()
        assert "from openai import OpenAI" in page.inner_text("#snippet")
        assert visit.complaints == []
        visit.context.close()


def test_a_saved_file_is_whole_and_states_its_length(visit):
    with_seed(visit)
    visit.page.fill("#input", "Hello.")
    speak(visit)
    with visit.page.expect_download() as saved:
        visit.page.click("#download")
    assert saved.value.suggested_filename == "speech.wav"
    data = saved.value.path().read_bytes()
    assert int.from_bytes(data[40:44], "little") == len(data) - 44
    assert np.array_equal(np.frombuffer(data[44:], "<i2"), samples())


def test_takes_are_kept_and_can_be_heard_and_used_again(visit):
    page = visit.page
    page.fill("#input", "First.")
    speak(visit, voice="serena")
    first = sum(piece["seconds"] for piece in visit.heard())
    page.fill("#input", "Second.")
    speak(visit, voice="vivian", format="flac")
    rows = page.locator("#takes li")
    assert rows.locator(".take-text").all_inner_texts() == ["Second.", "First."]
    visit.forget()
    rows.last.get_by_role("button", name="Play").click()
    expect(page.locator("#live")).to_have_text(re.compile("^Playing"))
    assert sum(piece["seconds"] for piece in visit.heard()) == pytest.approx(first)
    rows.last.get_by_role("button", name="Reuse").click()
    shown = [page.input_value(f"#{name}") for name in ("input", "voice", "format")]
    assert shown == ["First.", "serena", "wav"]


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"viewport": {"width": 1360, "height": 900}}, id="desktop"),
        pytest.param({"color_scheme": "dark", "reduced_motion": "reduce"}, id="dark"),
        pytest.param(
            {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
            id="phone",
        ),
    ],
)
def test_everybody_can_use_it(browser, server, options, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs extra `dev`")
    visit = Visit(browser, server[0], **options)
    page = visit.page
    page.click("#more summary")
    speak(visit)
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    # Both pictures show something, and nothing is wider than the screen.
    for name in ("waveform", "spectrogram"):
        colours = page.evaluate(
            """(name) => {
              const canvas = document.getElementById(name);
              const pen = canvas.getContext("2d");
              const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
              return new Set(new Uint32Array(data.buffer)).size;
            }""",
            name,
        )
        assert colours > 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert visit.complaints == []
    visit.context.close()


@pytest.mark.parametrize(
    ("path", "shown"), [("docs", "#operations-tag-speech"), ("redoc", "[id='tag/speech']")]
)
def test_the_reference_needs_no_other_server(browser, server, path, shown):
    context = browser.new_context()
    page = context.new_page()
    answered, errors = [], []
    page.on("response", lambda response: answered.append(response.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"{server[0]}/{path}")
    expect(page.locator(shown).first).to_be_visible()
    assert any(url.endswith("/openapi.json") for url in answered)
    assert [url for url in answered if not url.startswith((server[0], "blob:", "data:"))] == []
    assert errors == []
    context.close()
