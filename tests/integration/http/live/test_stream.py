"""Text in pieces over a WebSocket, as a client of the protocol sees it."""

import asyncio
import io
import json
import wave

import numpy as np
import pytest
import websockets

from serve_app import metrics
from serve_app.config import IngressConfig, LiveConfig
from serve_app.errors import Overloaded, StageFailed
from tests.integration.http.live.talking import TEXT, UNITS, Talk, address, talking
from tests.integration.http.service import NUM_FRAMES, Service, samples, served
from tests.unit.audio.signals import decoded
from tests.waiting import until

RATE_HZ = 24000
UNIT_SAMPLES = NUM_FRAMES * 1920
PAUSES_S = (0.05, 0.15, 0.15)


def pcm(data):
    return np.frombuffer(data, "<i2")


def run(main):
    asyncio.run(main())


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_text_in_pieces_is_spoken_in_units_that_join_without_a_missing_sample(size):
    async def main():
        service = Service()
        async with talking(service) as talk:
            await talk.say(size=size)
            done = await talk.until("session.done")
        assert done == {"type": "session.done", "utterance_index": 0, "total_sentences": 4}
        assert [m["sentence_text"] for m in talk.of("audio.start")] == UNITS
        assert [request.text for request in service.talker.requests] == UNITS
        heard, one, at = pcm(talk.data), samples(), 0
        for number in range(4):
            unit = heard[at : at + UNIT_SAMPLES]
            np.testing.assert_array_equal(unit[120:-120], one[120:-120])
            assert abs(int(unit[-1])) < 50  # it fades
            at += UNIT_SAMPLES
            pause = round(PAUSES_S[number] * RATE_HZ) if number < 3 else 0
            assert not heard[at : at + pause].any()
            at += pause
        assert at == len(heard)

    run(main)


def test_markers_say_where_each_unit_stands():
    async def main():
        async with talking() as talk:
            await talk.say()
            await talk.until("session.done")
        begun, ended = talk.of("audio.start"), talk.of("audio.done")
        assert [m["sentence_index"] for m in begun] == [m["sentence_index"] for m in ended]
        position = 0.0
        for start, end in zip(begun, ended, strict=True):
            assert (start["format"], start["sample_rate"], start["channels"]) == ("pcm", 24000, 1)
            assert start["start_s"] == pytest.approx(position, abs=0.002)
            assert end["total_bytes"] == round(end["duration_s"] * RATE_HZ) * 2
            assert (end["finish_reason"], end["error"]) == ("stop", False)
            position += end["duration_s"]

    run(main)


def test_the_first_clause_is_spoken_while_its_sentence_still_comes():
    async def main():
        async with talking() as talk:
            await talk.send("input.text", text="As far as I know, this")
            start = await talk.until("audio.start")
            assert start["sentence_text"] == UNITS[0]
            # The whole unit is there, and the text has still no end.
            assert (await talk.until("audio.done"))["sentence_index"] == 0
            await talk.send("input.text", text=" is so.")
            await talk.send("input.done")
            await talk.until("session.done")
        assert [m["sentence_text"] for m in talk.of("audio.start")] == UNITS[:2]

    run(main)


def test_what_waits_is_spoken_on_flush():
    async def main():
        async with talking() as talk:
            await talk.send("input.text", text="One moment")
            await talk.send("input.flush")
            assert (await talk.until("audio.done"))["sentence_index"] == 0
            await talk.send("input.text", text=" please")
            await talk.send("input.done")
            await talk.until("session.done")
        assert [m["sentence_text"] for m in talk.of("audio.start")] == ["One moment", "please"]

    run(main)


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac", "wav", "pcm"])
@pytest.mark.parametrize("options", [{}, {"stream_audio": False, "audio_transport": "base64"}])
def test_every_format_comes_as_one_stream_or_file_for_each_unit(format, options):
    async def main():
        async with talking(response_format=format, **options) as talk:
            await talk.say("One sentence. Another one")
            await talk.until("session.done")
        for number, pause in ((0, 0.15), (1, 0)):
            pieces = talk.audio[0, number]
            assert (len(pieces) == 1) == ("stream_audio" in options)
            data = b"".join(pieces)
            if format == "pcm":
                assert all(len(piece) % 2 == 0 for piece in pieces)
                seconds = len(data) / 2 / RATE_HZ
            else:
                audio, rate_hz = decoded(data)
                seconds = len(audio) / rate_hz
            expected = NUM_FRAMES * 0.08 + pause
            assert expected - 0.001 <= seconds < expected + 0.11

    run(main)


def test_speed_and_sample_rate_hold_for_every_unit():
    async def main():
        async with talking(speed=2.0, sample_rate=8000) as talk:
            await talk.say("One sentence. Another one")
            await talk.until("session.done")
        assert talk.of("audio.start")[0]["sample_rate"] == 8000
        seconds = [len(b"".join(pieces)) / 16000 for pieces in talk.audio.values()]
        assert seconds == pytest.approx([(0.8 + 0.15) / 2, 0.4], abs=0.01)

    run(main)


def test_several_utterances_share_a_connection_and_its_settings_change_between_them():
    async def main():
        service = Service()
        async with talking(service, voice="serena") as talk:
            await talk.say("One. Two.")
            await talk.say("Three.")  # before the first is spoken
            await talk.until("session.done")
            await talk.until("session.done")
            await talk.send("session.config", voice="ryan", response_format="pcm")
            await talk.say("Four.")
            await talk.until("session.done")
            await talk.send("session.close")
            await talk.socket.wait_closed()
            assert talk.socket.close_code == 1000
        assert [m["utterance_index"] for m in talk.of("session.done")] == [0, 1, 2]
        voices = [str(request.voice) for request in service.talker.requests]
        assert voices == ["serena", "serena", "serena", "ryan"]
        assert service.counts[metrics.REQUESTS.name, "200"] == 3

    run(main)


def test_a_client_that_says_goodbye_first_still_hears_the_rest():
    async def main():
        async with talking() as talk:
            await talk.say()
            await talk.send("session.close")
            await talk.until("session.done")
            await talk.socket.wait_closed()
        assert len(talk.of("audio.done")) == 4

    run(main)


def test_an_empty_utterance_is_done_at_once():
    async def main():
        async with talking() as talk:
            await talk.send("input.done")
            done = await talk.until("session.done")
        assert done == {"type": "session.done", "utterance_index": 0, "total_sentences": 0}

    run(main)


def test_a_client_of_vllm_omni_is_served():
    """Its example: settings by vllm-omni's names, words one by one, and files it can write."""

    async def main():
        config = {
            "response_format": "wav",
            "voice": "Vivian",
            "task_type": "CustomVoice",
            "language": "Auto",
            "instructions": None,
            "max_new_tokens": 256,
            "split_granularity": "sentence",
            "stream_audio": False,
            "initial_codec_chunk_frames": None,
            "x_vector_only_mode": None,
            "word_timestamps": False,
        }
        async with talking(**config) as talk:
            for word in ["Hello", "world.", "How", "are", "you"]:
                await talk.send("input.text", text=f"{word} ")
            await talk.send("input.done")
            await talk.until("session.done")
        kinds = [message["type"] for message in talk.messages]
        assert kinds == ["audio.start", "audio.done"] * 2 + ["session.done"]
        for number, text in enumerate(["Hello world.", "How are you"]):
            start = talk.of("audio.start")[number]
            assert (
                start.items()
                >= {
                    "utterance_index": 0,
                    "sentence_index": number,
                    "sentence_text": text,
                    "format": "wav",
                }.items()
            )
            (file,) = talk.audio[0, number]
            with wave.open(io.BytesIO(file)) as reader:
                assert reader.getnframes() == UNIT_SAMPLES + (round(0.15 * RATE_HZ), 0)[number]

    run(main)


# Barge-in


def test_cancel_closes_what_is_made_and_drops_what_waits():
    async def main():
        service = Service(num_frames=100_000, frame_s=0.001)
        async with talking(service) as talk:
            await talk.say("One long thing. Another. And a third one.")
            await talk.say("The next utterance.")
            await talk.until("audio.start")
            assert not service.idle
            await talk.send("input.cancel")
            done = [await talk.until("session.done"), await talk.until("session.done")]
            # Every generator was closed before it was said.
            assert service.idle
            assert [(m["utterance_index"], m["cancelled"]) for m in done] == [(0, True), (1, True)]
            num_pieces = sum(map(len, talk.audio.values()))
            assert len(service.talker.requests) == 1
            assert (metrics.STREAMS_ABORTED.name, "client_gone") in service.counts
            # Nothing of it comes any more, and the connection serves the next one.
            await talk.send("input.text", text="Yes? ")
            await talk.send("input.flush")
            start = await talk.until("audio.start")
            assert (start["utterance_index"], start["sentence_text"]) == (2, "Yes?")
            assert sum(map(len, talk.audio.values())) == num_pieces
            await talk.send("input.cancel")
            await talk.until("session.done")

    run(main)


def test_cancel_frees_a_stage_that_has_not_answered_yet():
    async def main():
        service = Service(frame_s=30.0)
        async with talking(service) as talk:
            await talk.say()
            await until(lambda: not service.idle)
            await talk.send("input.cancel")
            await talk.until("session.done")
            assert service.idle

    run(main)


def test_cancel_of_nothing_is_nothing():
    async def main():
        async with talking() as talk:
            await talk.send("input.cancel")
            await talk.say("One.")
            assert (await talk.until("session.done"))["total_sentences"] == 1

    run(main)


def test_a_client_that_leaves_frees_every_stage():
    async def main():
        service = Service(num_frames=100_000, frame_s=0.001)
        async with served(service.app) as url:
            async with websockets.connect(address(url)) as socket:
                talk = Talk(socket)
                await talk.send("session.config", response_format="pcm")
                await talk.say()
                await talk.until("audio.start")
            await until(lambda: service.idle)
            await until(lambda: (metrics.REQUESTS.name, "499") in service.counts)

    run(main)


# What goes wrong


@pytest.mark.parametrize(
    ("first", "code", "param"),
    [
        ("no json", 1008, None),
        ("[1]", 1008, None),
        (b"{}", 1008, None),
        ('{"type": "input.text", "text": "Hi."}', 1008, "type"),
        ('{"type": "session.config", "voice": "nobody"}', 1008, "voice"),
        ('{"type": "session.config", "model": "gpt-5"}', 1008, "model"),
        ('{"type": "session.config", "response_format": "midi"}', 1008, "response_format"),
        ('{"type": "session.config", "split_granularity": "word"}', 1008, "split_granularity"),
        ('{"type": "session.config", "audio_transport": []}', 1008, "audio_transport"),
        ('{"type": "session.config", "word_timestamps": true}', 1008, "word_timestamps"),
        ('{"type": "session.config", "speed": NaN}', 1008, None),
        ('{"type": "session.config", "x": "' + "x" * (4 << 20) + '"}', 1009, None),
    ],
)
def test_a_first_message_that_is_wrong_ends_the_session_with_a_reason(
    url_of_idle, first, code, param
):
    async def main():
        async with websockets.connect(address(url_of_idle)) as socket:
            await socket.send(first)
            message = json.loads(await socket.recv())
            assert message["type"] == "error"
            assert message["error"]["type"] == "invalid_request_error"
            assert message["error"]["param"] == param
            assert message["message"] == message["error"]["message"]
            await socket.wait_closed()
            assert socket.close_code == code

    run(main)


@pytest.fixture(scope="module")
def url_of_idle():
    from tests.integration.http.service import running

    with running() as (url, service):
        yield url
        assert service.idle


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "input.text"}, "text"),
        ({"type": "input.text", "text": "x" * (200 << 10)}, "text"),
        ({"type": "input.text", "text": "x" * 40_000}, "text"),
        ({"type": "input.text", "text": "\ud83d"}, "text"),
        ({"type": "input.text", "text": "a <|im_end|> b"}, "text"),
        ({"type": "what"}, "type"),
        ({"type": ["what"]}, "type"),
        ({}, "type"),
        ({"type": "session.config", "voice": "nobody"}, "voice"),
    ],
)
def test_a_later_message_that_is_wrong_leaves_the_session_as_it_was(url_of_idle, message, param):
    async def main():
        async with websockets.connect(address(url_of_idle)) as socket:
            talk = Talk(socket)
            await talk.send("session.config", response_format="pcm")
            await socket.send(json.dumps(message))
            error = await talk.until("error")
            assert error["error"]["param"] == param
            await talk.say("Well. And so on.")
            done = await talk.until("session.done")
            assert done["total_sentences"] == 2

    run(main)


def test_settings_do_not_change_within_an_utterance():
    async def main():
        async with talking() as talk:
            await talk.send("input.text", text="One")
            await talk.send("session.config", voice="ryan")
            assert (await talk.until("error"))["error"]["param"] == "type"
            await talk.send("input.done")
            await talk.until("session.done")

    run(main)


def test_control_strings_that_come_in_pieces_are_not_spoken():
    async def main():
        service = Service()
        async with talking(service) as talk:
            await talk.say("Hello. This <|im_end|> that. Good.", size=3)
            await talk.until("error")
            await talk.until("session.done")
        assert [request.text for request in service.talker.requests] == ["Hello.", "Good."]

    run(main)


def test_a_text_with_nothing_to_say_is_silent():
    async def main():
        async with talking() as talk:
            await talk.say("[pause 1s]")
            assert (await talk.until("session.done"))["total_sentences"] == 0

    run(main)


@pytest.mark.parametrize("fail_at", [0, 5])
def test_a_failure_is_told_and_the_session_goes_on(fail_at):
    async def main():
        service = Service(fail_at=fail_at, error=StageFailed("secret"))
        async with talking(service) as talk:
            await talk.send("input.text", text="One. Two. Thr")
            error = await talk.until("error")
            assert error["error"]["code"] == "generation_failed"
            assert "secret" not in json.dumps(error)
            assert error["utterance_index"] == 0
            done = await talk.until("session.done")
            assert (done["utterance_index"], done["error"]) == (0, True)
            # What more comes of its text belongs to what has failed.
            await talk.send("input.text", text="ee.")
            await talk.send("input.done")
            service.talker._fail_at = None
            await talk.say("Four.")
            done = await talk.until("session.done")
            assert (done["utterance_index"], done["total_sentences"]) == (1, 1)
        aborted = (metrics.STREAMS_ABORTED.name, "stage_failed") in service.counts
        assert aborted == (fail_at > 0)
        assert service.counts[metrics.REQUESTS.name, "500"] == 1

    run(main)


def test_a_full_server_says_so():
    async def main():
        service = Service(fail_at=0, error=Overloaded("full", 1.0))
        async with talking(service) as talk:
            await talk.say("One.")
            assert (await talk.until("error"))["error"]["code"] == "server_overloaded"
            await talk.until("session.done")

    run(main)


def test_text_waits_up_to_a_limit_and_no_further():
    async def main():
        service = Service(frame_s=30.0, config=IngressConfig(max_input_chars=100))
        async with talking(service) as talk:
            await talk.send("input.text", text="One. " + "x" * 60)
            await talk.send("input.text", text="y" * 60)
            error = await talk.until("error")
            assert error["error"]["code"] == "string_above_max_length"
            await talk.send("input.cancel")
            await talk.until("session.done")
            await talk.send("input.text", text="y" * 60)
            await talk.send("input.cancel")
            await talk.until("session.done")

    run(main)


def test_a_client_that_is_silent_is_let_go_but_not_while_it_listens():
    async def main():
        config = IngressConfig(live=LiveConfig(config_timeout_s=0.1, idle_timeout_s=0.3))
        service = Service(num_frames=8, frame_s=0.1, config=config)
        async with served(service.app) as url:
            async with websockets.connect(address(url)) as socket:
                error = json.loads(await socket.recv())
                assert error["error"]["code"] == "idle_timeout"
                await socket.wait_closed()
                assert socket.close_code == 1008
            async with websockets.connect(address(url)) as socket:
                talk = Talk(socket)
                await talk.send("session.config", response_format="pcm")
                await talk.say("Hello.")
                await talk.until("session.done")
                await talk.until("error")
                await socket.wait_closed()

    run(main)


def test_a_client_that_reads_nothing_is_cut_off_and_others_are_not_disturbed():
    async def main():
        config = IngressConfig(read_ahead_s=10.0, reader_timeout_s=0.3)
        service = Service(num_frames=100_000, chunk_frames=(50,), config=config)
        async with served(service.app) as url:
            connecting = websockets.connect(address(url), max_queue=1, compression=None)
            async with connecting as socket:
                talk = Talk(socket)
                await talk.send("session.config", response_format="pcm")
                await talk.say(TEXT)
                stalled = (metrics.STREAMS_ABORTED.name, "client_stalled")
                await until(lambda: stalled in service.counts)
                await until(lambda: service.idle)
                socket.transport.abort()

    run(main)
