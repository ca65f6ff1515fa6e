"""`tts-stream voices`: the library of a server, from the command line."""

import json
import os
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn

from serve_app.cli.tts_stream import main
from serve_app.fakes import fake_card
from tests.integration.http.service import CARD, SEED, samples
from tests.integration.http.voices.recordings import BASE, WAV, cloning, container, tone

DESIGN = fake_card(
    task="voice_design",
    name="design",
    path="fakes/design",
    voices=(),
    voice_sources=frozenset({"description"}),
)


@contextmanager
def serving(service):
    config = uvicorn.Config(service.app, port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)


@pytest.fixture
def command(request, tmp_path, monkeypatch, capsysbinary):
    """Runs a command line; gives its status, output and complaints."""
    service = cloning(tmp_path, cards=(CARD, BASE, *getattr(request, "param", ())))
    with serving(service) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.chdir(tmp_path)

        def run(*arguments):
            status = main(arguments)
            said = capsysbinary.readouterr()
            return status, said.out.decode("utf-8", "replace"), said.err.decode()

        yield run, service


def test_a_voice_is_added_found_spoken_with_and_deleted(command, tmp_path):
    run, service = command
    (tmp_path / "anna.wav").write_bytes(WAV)
    said = ("--text", "Guten Morgen. „Ja“?", "--language", "de", "--description", "ruhig")
    status, out, err = run("voices", "add", "Änne", "anna.wav", *said)
    assert (status, err) == (0, "")
    name, voice_id, *facts = out.rstrip("\n").split("\t")
    assert (name, facts) == ("Änne", ["de", "ruhig"])
    assert run("voices")[1] == run("voices", "list")[1] == out
    assert json.loads(run("voices", "show", "änne")[1])["ref_text"] == "Guten Morgen. „Ja“?"
    assert run("voices", "rename", "änne", "Anne")[0] == 0
    assert run("voices", "alias", "nova", "anne") == (0, "", "")
    assert run("voices", "default", "anne")[1] == run("voices", "default")[1]
    assert f"Anne\t{voice_id}" in run("voices", "default")[1]
    assert run("-q", "-o", "a.wav", "-v", "nova", "Hello.")[0] == 0
    recording = ("--ref-audio", "anna.wav", "--ref-text", "Guten Morgen.")
    assert run("-q", "-o", "b.wav", *recording, "Hello.")[0] == 0
    assert [str(request.voice)[:9] for request in service.talker.requests] == ["Anne", "recording"]
    assert run("voices", "download", "anne")[0] == 0
    assert (tmp_path / "anne.flac").read_bytes()[:4] == b"fLaC"
    assert run("voices", "download", "anne", "-o", "-")[1][:4] == "fLaC"
    assert run("voices", "unalias", "nova")[0] == 0
    assert run("voices", "default", "--none")[0] == 0
    assert run("voices", "default")[1] == ""
    assert run("voices", "delete", "anne")[1] == f"{voice_id}\n"
    status, out, err = run("voices", "delete", "anne")
    assert (status, err) == (1, "tts-stream: The voice 'anne' does not exist.\n")


@pytest.mark.parametrize("command", [(DESIGN,)], indirect=True, ids=["design"])
def test_a_described_voice_is_heard_before_and_after_it_is_kept(command, player, monkeypatch):
    run, service = command
    folder, heard = player
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HEARD", str(heard))
    said = ("--say", "Hello there.", "--language", "en", "--seed", str(SEED))
    assert run("voices", "audition", "An old man.", *said) == (0, f"seed {SEED}\n", "")
    assert np.array_equal(np.frombuffer(heard.read_bytes(), "<i2"), samples())
    assert run("voices", "design", "Opa", "An old man.", *said)[0] == 0
    heard.unlink()
    assert run("voices", "play", "opa") == (0, "", "")
    kept = np.frombuffer(heard.read_bytes(), "<i2").astype(int)
    assert np.abs(kept - samples()).max() <= 1
    first, second = service.talker.requests
    for request in (first, second):
        assert (request.text, request.instructions) == ("Hello there.", "An old man.")
        assert (request.language, request.seed) == ("english", SEED)
    # Without a seed it is another voice each time, and one knows which.
    assert run("voices", "audition", "An old man.", "-o", "a.wav")[1] != f"seed {SEED}\n"


def test_what_is_known_of_a_voice_is_changed(command, player, monkeypatch, tmp_path):
    run, _ = command
    folder, heard = player
    (tmp_path / "anna.wav").write_bytes(WAV)
    assert run("voices", "add", "Anna", "anna.wav", "--text", "Good morning.")[0] == 0
    changes = ("--text", "", "--language", "en", "--description", "calm", "--shared")
    assert run("voices", "edit", "anna", *changes)[0] == 0
    shown = json.loads(run("voices", "show", "anna")[1])
    facts = [shown[name] for name in ("ref_text", "language", "description", "shared")]
    assert facts == [None, "en", "calm", True]
    assert run("voices", "edit", "anna", "--description", "")[1].split("\t")[2:] == ["en\n"]
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("HEARD", str(heard))
    assert run("voices", "play", "anna")[0] == 0
    played = np.frombuffer(heard.read_bytes(), "<i2") / 32768
    assert np.abs(played - tone(2)).max() < 2 / 32768


def test_a_part_of_a_recording_is_added(command, tmp_path):
    run, service = command
    for name, data in (("a.wav", WAV), ("a.m4a", container(tone(4, 48000), "mp4", "aac"))):
        (tmp_path / name).write_bytes(data)
        assert run("voices", "add", name, name, "--from", "0.25", "--to", "1.5")[0] == 0
        assert abs(json.loads(run("voices", "show", name)[1])["duration_seconds"] - 1.25) < 1e-3
        assert run("-q", "-o", "b.wav", "-v", name, "Hello.")[0] == 0
    np.testing.assert_allclose(service.encoder.clips[0], tone(2)[6000:36000], atol=1e-3)
    status, _, err = run("voices", "add", "b", "a.wav", "--from", "2.5")
    assert (status, err) == (2, "tts-stream: a.wav has nothing between these times\n")
    (tmp_path / "a.txt").write_text("no audio")
    status, _, err = run("voices", "add", "b", "a.txt", "--to", "2")
    assert status == 2
    assert "a.txt cannot be cut" in err
    assert run("voices", "add", "b", "nothing.wav", "--to", "2")[0] == 2


def test_what_a_microphone_hears_becomes_a_voice(command, microphone, monkeypatch):
    run, service = command
    folder, said = microphone
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("SAID", str(said))
    said.write_bytes((32767 * tone(1.5)).astype("<i2").tobytes())
    status, _, err = run("voices", "add", "Anna", "--record", "1.25", "--text", "Good morning.")
    assert (status, err) == (0, "recording for 1.25 s, speak now\nrecorded\n")
    assert "-r 24000" in said.with_name("said.arguments").read_text()
    assert run("-q", "-o", "a.wav", "-v", "anna", "Hello.")[0] == 0
    np.testing.assert_allclose(service.encoder.clips[0], tone(1.25), atol=1e-3)
    for program, complaint in (("exit 1", "arecord ended after 0.0 s"), (None, "pip install")):
        if program is None:
            monkeypatch.setenv("PATH", str(folder / "empty"))
        else:
            (folder / "arecord").write_text(f"#!/bin/sh\n{program}\n")
        status, _, err = run("voices", "add", "Otto", "--record", "1.25")
        assert status == 5
        assert complaint in err
    for both in (["Otto"], ["Otto", "a.wav", "--record", "2"]):
        with pytest.raises(SystemExit):
            main(["voices", "add", *both])


def test_a_consent_is_given_used_and_withdrawn(command, tmp_path):
    run, _ = command
    (tmp_path / "a.wav").write_bytes(WAV)
    status, out, _ = run("voices", "consent", "Anna's", "a.wav", "--language", "en-US")
    assert status == 0
    consent = out.strip()
    assert run("voices", "consents")[1] == f"{consent}\tAnna's\ten-US\n"
    assert run("voices", "add", "Anna", "a.wav", "--consent", consent)[0] == 0
    assert json.loads(run("voices", "show", "anna")[1])["consent"] == consent
    assert run("voices", "withdraw", consent)[1] == f"{consent}\n"
    assert run("voices", "consents") == (0, "", "")
    assert run("voices", "withdraw", consent)[0] == 1


def test_what_is_wrong_is_said(command, tmp_path):
    run, _ = command
    assert run("voices", "add", "Anna", "nothing.wav")[0] == 2
    (tmp_path / "a.txt").write_text("no audio")
    status, _, err = run("voices", "add", "Anna", "a.txt")
    assert status == 1
    assert "not a recording" in err
    status, _, err = run("voices", "design", "Anna", "An old man.")
    assert status == 1
    assert "VoiceDesign" in err
    with pytest.raises(SystemExit):
        main(["--ref-text", "a", "b"])
    # A text is not a command.
    assert run("-q", "-o", "a.wav", "voices from afar")[0] == 0
