"""The page of voices in Chromium: a microphone is recorded, files are dropped, voices are kept."""

import io
import re

import numpy as np
import pytest
import soundfile

from serve_app.config import IngressConfig, VoicesConfig
from serve_app.fakes import FakeVoiceEncoder, fake_card
from tests.integration.http.service import running, samples
from tests.integration.http.voices.recordings import BASE, container, sound_file, tone
from tests.integration.http.web.browser import CARDS, Visit, chromium

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (extra `dev`)")
expect = playwright.expect
pytestmark = pytest.mark.skipif(
    chromium() is None, reason="needs Chromium: apt-get install chromium, or CHROMIUM=path"
)
DESIGN = fake_card(
    name="qwen3-tts-design",
    path="fakes/qwen3-tts-design",
    task="voice_design",
    voices=(),
    voice_sources=frozenset({"description"}),
)
# A microphone that beeps, and nobody who has to be asked for it.
MICROPHONE = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
QUANTUM = 1 / 32768


@pytest.fixture(scope="module")
def browser():
    expect.set_options(timeout=20_000)
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=chromium(), args=["--no-sandbox", *MICROPHONE])
        yield found
        found.close()


class Voices(Visit):
    """A visit of the page of voices."""

    def __init__(self, browser, url, **options):
        seen = "#clone-language option"
        options = {"permissions": ["microphone"], **options}
        super().__init__(browser, url, "/web/voices.html", seen, **options)

    def drop(self, data, name="recording.wav"):
        """Let a file fall on the place for it."""
        transfer = self.page.evaluate_handle(
            """([bytes, name]) => {
              const transfer = new DataTransfer();
              transfer.items.add(new File([new Uint8Array(bytes)], name));
              return transfer;
            }""",
            [list(data), name],
        )
        self.page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})

    def sound(self):
        """All that was given to the loudspeakers."""
        pieces = self.heard()
        return np.concatenate([piece["samples"] for piece in pieces]) if pieces else np.zeros(0)

    def row(self, name):
        return self.page.locator("#voices > li").filter(has_text=name)


@pytest.fixture
def serving(tmp_path):
    """The address of a server with all kinds of checkpoints and an empty library."""
    config = IngressConfig(voices=VoicesConfig(path=str(tmp_path / "voices")))
    cards = (CARDS[0], BASE, DESIGN)
    with running(cards, config=config, encoder=FakeVoiceEncoder()) as (url, service):
        yield url, service


@pytest.fixture
def visit(browser, serving):
    one = Voices(browser, serving[0])
    yield one
    one.context.close()
    assert one.complaints == []
    assert one.elsewhere == []


def kept_recording(visit, name):
    """float32 [N], 24 kHz, of a voice of the server's library."""
    answer = visit.page.request.get(f"{visit.url}/v1/audio/voices/{name}/download")
    assert answer.ok
    recorded, rate_hz = soundfile.read(io.BytesIO(answer.body()), dtype="float32")
    assert rate_hz == 24000
    return recorded


def test_a_voice_is_recorded_trimmed_heard_and_kept(visit, serving):
    page = visit.page
    page.click("#record")
    expect(page.locator("#record-label")).to_have_text(re.compile(r"^Stop, [3-9]\."))
    page.click("#record")
    expect(page.locator("#clip")).to_be_visible()
    expect(page.locator("#record-label")).to_have_text("Record")
    whole_s = float(page.get_attribute("#upto", "max"))
    assert whole_s >= 3
    page.locator("#from").fill("0.5")
    page.locator("#upto").fill("2.75")
    expect(page.locator("#clip-length")).to_have_text(re.compile(r"^2\.[23] s are used$"))
    page.click("#play-clip")
    expect(page.locator("#stop")).to_be_enabled()
    (played,) = visit.heard()
    assert played["seconds"] == pytest.approx(2.25, abs=0.06)
    # The microphone beeps once a second: there is sound, and it is not sound alone.
    assert max(played["samples"]) > 0.1
    visit.forget()

    page.fill("#said", "Beep, beep.")
    page.fill("#sentence", "Hello.")
    with page.expect_request("**/v1/audio/speech") as sent:
        page.click("#hear-clone")
    body = sent.value.post_data_json
    assert body["ref_text"] == "Beep, beep."
    assert body["ref_audio"].startswith("data:audio/wav;base64,")
    expect(page.locator("#live")).to_have_text("0.8 seconds of audio")
    assert len(visit.sound()) == len(samples())
    (request,) = serving[1].talker.requests
    assert request.voice.reference_text == "Beep, beep."

    page.fill("#clone-name", "Robot")
    page.select_option("#clone-language", "english")
    page.click("#save-clone")
    expect(visit.row("Robot")).to_be_visible()
    expect(page.locator("#trim")).to_be_hidden()
    expect(page.locator("#save-clone")).to_be_disabled()
    assert page.input_value("#said") == ""
    expect(visit.row("Robot")).to_contain_text("recorded · English")
    recorded = kept_recording(visit, "robot")
    assert len(recorded) / 24000 == pytest.approx(played["seconds"], abs=0.001)
    # The browser's rate is another one, so only the course of the loudness is the same.
    expected = np.interp(
        np.arange(len(recorded)) / 24000,
        np.arange(len(played["samples"])) / (len(played["samples"]) / played["seconds"]),
        np.abs(played["samples"]),
    )
    windows = len(recorded) // 2400
    loud = np.abs(recorded[: windows * 2400]).reshape(windows, -1).mean(1)
    wanted = expected[: windows * 2400].reshape(windows, -1).mean(1)
    assert np.corrcoef(loud, wanted)[0, 1] > 0.95


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_dropped_file_becomes_a_voice_without_the_silence_around_it(visit, kind):
    silence = np.zeros(24000, np.float32)
    visit.drop(sound_file(np.concatenate([silence, tone(3), silence]), kind))
    expect(visit.page.locator("#clip")).to_be_visible()
    expect(visit.page.locator("#upto")).to_have_attribute("max", re.compile(r"^5\."))
    visit.page.fill("#clone-name", "Dropped")
    visit.page.click("#save-clone")
    expect(visit.row("Dropped")).to_be_visible()
    recorded = kept_recording(visit, "dropped")
    assert 3.0 < len(recorded) / 24000 < 3.7
    assert np.abs(recorded[4800:-9600]).max() == pytest.approx(0.3, abs=0.05)


def test_what_the_browser_cannot_read_goes_to_the_server_as_it_is(visit):
    """Chromium without licences has no AAC; where it has one, the file is shown as any other."""
    visit.drop(container(tone(2, 48000), "mp4", "aac"), "memo.m4a")
    expect(visit.page.locator("#save-clone")).to_be_enabled()
    visit.page.fill("#clone-name", "Memo")
    visit.page.click("#save-clone")
    expect(visit.row("Memo")).to_be_visible()
    assert len(kept_recording(visit, "memo")) / 24000 == pytest.approx(2, abs=0.5)


def test_a_described_voice_is_heard_in_variants_and_one_is_kept(visit, serving):
    page, service = visit.page, serving[1]
    page.fill("#prompt", "An old man.")
    page.fill("#script", "Come closer.")
    rows = page.locator("#variants li")
    heard = []
    for number in (1, 2, 3):
        visit.forget()
        page.click("#variant")
        expect(rows).to_have_count(number)
        heard.append(visit.sound())
    # Each is another voice, and each is heard.
    assert len({sound.tobytes() for sound in heard}) == 3
    visit.forget()
    rows.nth(0).get_by_role("button", name="Play").click()
    expect(page.locator("#stop")).to_be_enabled()
    assert np.array_equal(visit.sound(), heard[0])
    page.check("#variant-2")
    page.fill("#design-name", "Opa")
    page.click("#save-design")
    expect(visit.row("Opa")).to_contain_text("described")
    expect(rows).to_have_count(0)
    # What is kept is what was heard of the one that was chosen.
    assert np.abs(kept_recording(visit, "opa") - heard[1]).max() <= 2 * QUANTUM
    assert [r.instructions for r in service.talker.requests] == ["An old man."] * 4
    assert {r.text for r in service.talker.requests} == {"Come closer."}
    assert service.talker.requests[3].seed == service.talker.requests[1].seed


def test_the_library_is_managed(visit, serving, browser):
    page = visit.page
    visit.drop(sound_file(tone(2)))
    page.fill("#clone-name", "Anna")
    page.fill("#said", "Hello.")
    page.click("#save-clone")
    row = visit.row("Anna")
    row.get_by_role("button", name="Play: Anna").click()
    expect(page.locator("#live")).to_have_text("Playing the recording of Anna")
    assert len(visit.sound()) == pytest.approx(2 * 24000, abs=2400)
    page.keyboard.press("Escape")
    expect(page.locator("#stop")).to_be_disabled()
    visit.forget()
    row.get_by_role("button", name="Speak: Anna").click()
    expect(page.locator("#live")).to_have_text("Anna: 0.8 seconds of audio")
    assert len(visit.sound()) == len(samples())
    expect(page.locator("#heard")).to_have_text(re.compile(r"^first audio after \d+ ms$"))
    assert str(serving[1].talker.requests[-1].voice) == "Anna"

    row.get_by_text("More").click()
    row.get_by_label("Name").fill("Annette")
    row.get_by_label("Description").fill("calm")
    row.get_by_role("button", name="Save changes: Anna").click()
    row = visit.row("Annette")
    expect(row).to_be_visible()
    # What was open stays open.
    expect(row.get_by_label("Description")).to_have_value("calm")
    row.get_by_role("button", name="Make default: Annette").click()
    expect(row).to_contain_text("default")
    with page.expect_download() as saved:
        row.get_by_role("button", name="Download: Annette").click()
    assert saved.value.suggested_filename == "Annette.flac"
    assert saved.value.path().read_bytes()[:4] == b"fLaC"

    row.get_by_role("link", name="Playground: Annette").click()
    expect(page.locator("#voice")).to_have_value(re.compile("^voice_"))
    assert page.locator("#voice option:checked").inner_text() == "Annette"
    assert page.input_value("#model") == "base"
    page.get_by_role("link", name="Voices").click()
    row.get_by_text("More").click()
    delete = row.get_by_role("button", name=re.compile("elete"))
    delete.click()
    expect(delete).to_have_text("Really delete?")
    delete.click()
    expect(row).to_have_count(0)
    expect(page.locator("#no-voices")).to_be_visible()


def test_what_the_server_refuses_is_said_in_its_words(visit):
    page = visit.page
    visit.drop(sound_file(tone(2)))
    page.fill("#clone-name", "serena")
    page.click("#save-clone")
    alert = page.get_by_role("alert")
    expect(alert).to_have_text("'serena' is a speaker of 'qwen3-tts-fake'.")
    page.fill("#clone-name", "Serena's sister")
    page.click("#save-clone")
    expect(visit.row("Serena's sister")).to_be_visible()
    expect(alert).to_be_hidden()
    assert all("400" in complaint for complaint in visit.complaints)
    visit.complaints.clear()


def test_where_consent_is_needed_it_is_recorded_first(browser, tmp_path):
    config = IngressConfig(voices=VoicesConfig(path=str(tmp_path), require_consent=True))
    with running((CARDS[0], BASE), config=config, encoder=FakeVoiceEncoder()) as (url, _):
        visit = Voices(browser, url)
        page = visit.page
        alert = page.get_by_role("alert")
        page.get_by_text("Description, consent, sharing").click()
        expect(page.locator("#keep-consent")).to_be_disabled()
        visit.drop(sound_file(tone(2)))
        page.fill("#clone-name", "Anna")
        page.click("#save-clone")
        expect(alert).to_contain_text("consent")
        page.click("#keep-consent")
        expect(alert).to_contain_text("language")
        page.select_option("#clone-language", "english")
        page.click("#keep-consent")
        expect(page.locator("#clone-consent")).to_have_value(re.compile("^cons_"))
        expect(alert).to_be_hidden()
        # It is no voice: that has to be recorded now.
        expect(page.locator("#save-clone")).to_be_disabled()
        consent = page.input_value("#clone-consent")
        visit.drop(sound_file(tone(3)))
        page.click("#save-clone")
        expect(visit.row("Anna")).to_be_visible()
        kept = page.request.get(f"{url}/v1/audio/voices/anna").json()
        assert (kept["consent"], kept["duration_seconds"]) == (consent, 3)
        expect(page.locator("#clone-consent")).to_have_value("")
        assert all("400" in complaint for complaint in visit.complaints)
        visit.context.close()


def test_a_server_that_neither_clones_nor_designs_says_so(browser, tmp_path):
    config = IngressConfig(voices=VoicesConfig(path=str(tmp_path)))
    with running((CARDS[0],), config=config) as (url, _):
        visit = Voices(browser, url)
        expect(visit.page.locator("#no-clone")).to_be_visible()
        expect(visit.page.locator("#no-design")).to_be_visible()
        expect(visit.page.locator("#variant")).to_be_disabled()
        visit.drop(sound_file(tone(2)))
        visit.page.fill("#clone-name", "Anna")
        expect(visit.page.locator("#hear-clone")).to_be_disabled()
        visit.page.click("#save-clone")
        expect(visit.row("Anna")).to_be_visible()
        expect(visit.row("Anna").get_by_role("button", name="Speak")).to_have_count(0)
        assert visit.complaints == []
        visit.context.close()


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
def test_everybody_can_use_it(browser, serving, options, request):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs extra `dev`")
    visit = Voices(browser, serving[0], **options)
    page = visit.page
    for name in ("Anna", "A name that is much longer than others are for once"):
        visit.drop(sound_file(tone(2)))
        page.fill("#clone-name", name)
        page.click("#save-clone")
        expect(visit.row(name)).to_be_visible()
    visit.drop(sound_file(np.concatenate([np.zeros(24000, np.float32), tone(4)])))
    page.click("#variant")
    expect(page.locator("#variants li")).to_have_count(1)
    for details in page.locator("details > summary").all():
        details.click()
    found = axe.Axe().run(page).response["violations"]
    assert [(one["id"], [node["html"] for node in one["nodes"]]) for one in found] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    # All of it by keys: what a mouse presses can be reached and is seen to be.
    page.focus("#record")
    for expected in ("file", "from", "upto", "play-clip", "discard", "said"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == expected
    assert visit.complaints == []
    visit.context.close()
