"""A voice from its upload to its end, by this API and by OpenAI's and other servers' clients."""

import asyncio
import base64
import io
import sys

import numpy as np
import openai
import pytest
import soundfile

from load_tests.loops.client import server_timings
from serve_app.config import IngressConfig, JobsConfig, VoicesConfig
from serve_app.errors import StageUnavailable
from serve_app.fakes import FakeVoiceEncoder, fake_card
from tests.integration.http.service import CARD, Service
from tests.integration.http.voices.recordings import (
    BASE,
    VOICES,
    WAV,
    cloning,
    config_of,
    sound_file,
    spoken,
    tone,
    upload,
)


def test_a_voice_lives_from_its_upload_to_its_end(tmp_path):
    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:
            made = await upload(http, "Änne", ref_text="Good morning.", language="de")
            assert made["id"].startswith("voice_")
            assert made["object"] == "audio.voice"
            path = f"{VOICES}/{made['id']}"
            got = (await http.get(f"{VOICES}/änne")).json()
            assert got["id"] == made["id"]
            assert (got["ref_text"], got["language"]) == ("Good morning.", "de")
            assert got["duration_seconds"] == 2
            for end, kind in (("preview", "inline"), ("download", "attachment")):
                played = await http.get(f"{path}/{end}")
                assert played.headers["content-type"] == "audio/flac"
                assert played.headers["content-disposition"].startswith(kind)
                samples, rate_hz = soundfile.read(io.BytesIO(played.content))
                assert rate_hz == 24000
                np.testing.assert_allclose(samples, tone(2), atol=1e-4)
            changed = await http.post(path, json={"name": "Anne", "speaker_description": "calm"})
            assert changed.json()["description"] == "calm"
            assert (await http.get(f"{VOICES}/Änne")).status_code == 404
            cleared = (await http.post(f"{VOICES}/anne", data={"ref_text": ""})).json()
            assert (cleared["name"], cleared["ref_text"]) == ("Anne", None)
            again = await http.post(VOICES, data={"name": "ANNE"}, files={"audio_sample": WAV})
            assert again.status_code == 409
            assert again.headers["x-should-retry"] == "false"
            assert again.json()["error"]["code"] == "voice_exists"
            gone = await http.delete(path)
            assert gone.json()["deleted"] is True
            assert (await http.delete(path)).status_code == 404
            assert (await spoken(http, voice="Anne")).json()["error"]["code"] == "voice_not_found"

    asyncio.run(main())


def test_a_voice_is_spoken_with_by_id_name_and_object_and_encoded_once(tmp_path):
    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:
            made = await upload(http, "Anna", ref_text="Good morning.")
            for named in (made["id"], "anna", {"id": made["id"]}):
                assert (await spoken(http, voice=named)).status_code == 200
            await spoken(http, voice="Anna", x_vector_only_mode=True)
        clip = await FakeVoiceEncoder().encode(service.encoder.clips[0])
        assert len(service.encoder.clips) == 1
        *whole, vector_only = [request.voice for request in service.talker.requests]
        for voice in whole:
            np.testing.assert_array_equal(voice.speaker_vector, clip.speaker_vector)
            np.testing.assert_array_equal(voice.reference_codes, clip.codes)
            assert voice.reference_text == "Good morning."
            assert voice.name == "Anna"
        assert vector_only.reference_codes is vector_only.reference_text is None
        np.testing.assert_allclose(service.encoder.clips[0], tone(2), atol=1e-4)
        # Another server, later, finds what the first has encoded.
        later = cloning(tmp_path)
        async with later.http() as http:
            assert (await spoken(http, voice="Anna")).status_code == 200
        assert later.encoder.clips == []
        np.testing.assert_array_equal(
            later.talker.requests[0].voice.speaker_vector, clip.speaker_vector
        )

    asyncio.run(main())


def test_what_one_server_was_told_another_goes_by_at_once(tmp_path):
    """Each has looked at the library right before, and so goes by what it knows."""

    async def main():
        one, other = cloning(tmp_path, require_consent=True), cloning(tmp_path)
        consents = "/v1/audio/voice_consents"
        asked = {"input": "Hello.", "response_format": "pcm"}
        async with one.http() as first, other.http() as second:
            for turn, ask in enumerate(
                (
                    lambda name: spoken(second, voice=name),
                    lambda name: second.post("/v1/audio/speech", json={**asked, "voice": name}),
                    lambda name: second.post(
                        "/v1/audio/speech/batch", json={"items": [{**asked, "voice": name}]}
                    ),
                    lambda name: second.get(f"{VOICES}/{name}"),
                    lambda name: second.put("/v1/audio/voice_aliases/other", json={"voice": name}),
                )
            ):
                for http in (first, second):
                    await http.get(VOICES)
                consent = await second.post(
                    consents, data={"name": "a", "language": "en"}, files={"recording": WAV}
                )
                name = f"voice {turn}"
                await upload(first, name, consent=consent.json()["id"])
                answer = await ask(name)
                assert answer.status_code == 200, answer.text
                assert "voice_not_found" not in answer.text

    asyncio.run(main())


def test_what_a_voice_took_is_among_the_timings_of_a_response(tmp_path):
    class Slow(FakeVoiceEncoder):
        async def encode(self, samples):
            await asyncio.sleep(0.3)
            return await super().encode(samples)

    async def main():
        service = cloning(tmp_path, cards=(CARD, BASE))
        service.encoder = Slow()
        recording = {"ref_audio": base64.b64encode(WAV).decode(), "ref_text": "Good morning."}
        async with service.http() as http:
            answers = [await spoken(http, **recording) for _ in range(2)]
            answers.append(await spoken(http, voice="ryan"))
        first, again, speaker = [server_timings(a.headers["server-timing"]) for a in answers]
        assert 0.3 <= first["voice"] <= first["ingress"]
        assert again["voice"] < 0.3
        assert "voice" not in speaker

    asyncio.run(main())


def test_the_event_loop_hashes_no_recording(tmp_path):
    """One of 10 MiB would hold it up for 7 to 10 ms."""
    sizes = []

    def watch(frame, event, arg):
        if event == "c_call" and arg.__name__.endswith("sha256"):
            sizes.extend(len(v) for v in frame.f_locals.values() if isinstance(v, bytes))

    async def main():
        service = cloning(tmp_path)
        file = ("clip.wav", WAV, "audio/wav")
        async with service.http() as http:
            sys.setprofile(watch)  # of this thread, where the event loop runs
            try:
                await upload(http, "Anna")
                consent = await http.post(
                    "/v1/audio/voice_consents",
                    data={"name": "Consent", "language": "en"},
                    files={"recording": file},
                )
                one_shot = await spoken(http, ref_audio=_base64(WAV), ref_text="Good morning.")
            finally:
                sys.setprofile(None)
        assert (consent.status_code, one_shot.status_code) == (200, 200)
        assert max(sizes, default=0) < len(WAV)

    asyncio.run(main())


def test_every_way_to_ask_for_speech_takes_a_stored_voice(tmp_path):
    async def main():
        config = config_of(tmp_path).model_copy(
            update={"jobs": JobsConfig(directory=str(tmp_path / "jobs"), poll_s=0.05)}
        )
        service = cloning(tmp_path, config=config)
        app = service.app
        async with app.router.lifespan_context(app), service.http() as http:
            made = await upload(http, "Anna", ref_text="Good morning.")
            item = {"input": "Hello.", "voice": "anna", "response_format": "pcm"}
            batch = (await http.post("/v1/audio/speech/batch", json={"items": [item, item]})).json()
            assert batch["succeeded"] == 2
            recording = {**item, "voice": None, "ref_audio": _base64(WAV), "ref_text": "Hello."}
            jobs = [
                (await http.post("/v1/audio/speech/long", json=fields)).json()
                for fields in (item, recording)
            ]
            # What a job began with it ends with.
            await http.delete(f"{VOICES}/{made['id']}")
            async with asyncio.timeout(20):
                for job in jobs:
                    path = f"/v1/audio/speech/long/{job['id']}"
                    while (shown := (await http.get(path)).json())["status"] != "completed":
                        assert shown["status"] in ("pending", "processing"), shown
                        await asyncio.sleep(0.05)
                    assert (await http.get(f"{path}/download")).status_code == 200
            sse = await spoken(http, ref_audio=_base64(WAV), stream_format="sse")
            assert b"speech.audio.done" in sse.content
        names = [request.voice.name for request in service.talker.requests]
        assert names[:2] == ["Anna", "Anna"]
        assert names.count("Anna") == 3

    asyncio.run(main())


def _base64(data):
    import base64

    return base64.b64encode(data).decode()


def test_the_list_has_speakers_voices_and_other_names_for_every_reader(tmp_path):
    async def main():
        service = cloning(tmp_path, cards=(CARD, BASE))
        async with service.http() as http:
            made = await upload(http, "Anna", speaker_description="calm", consent="by mail")
            await http.put("/v1/audio/voice_aliases/alloy", json={"voice": "anna"})
            body = (await http.get(VOICES)).json()
            names = [voice["name"] for voice in body["voices"]]
            assert names[: len(CARD.voices)] == list(CARD.voices)
            assert names[len(CARD.voices)] == "Anna"
            entries = {voice["id"]: voice for voice in body["data"]}
            assert entries["alloy"]["alias_of"] == "Anna"
            assert entries[made["id"]]["aliases"] == ["alloy"]
            assert entries["echo"]["alias_of"] == "ryan"
            # vllm-omni's clients read this list.
            (uploaded,) = body["uploaded_voices"]
            assert uploaded["name"] == "Anna"
            assert uploaded["consent"] == "by mail"
            assert uploaded["file_size"] == len(WAV)
            assert uploaded["mime_type"] == "audio/wav"
            assert uploaded["speaker_description"] == "calm"
            assert uploaded["created_at"] > 0
            legacy = (await http.get(VOICES, params={"legacy": True})).json()
            assert legacy["voices"] == names
            assert (await http.get(f"{VOICES}/ryan")).json()["type"] == "builtin"

    asyncio.run(main())


def test_a_speaker_of_the_list_that_is_taken_for_a_voice_of_the_library_is_called_one(tmp_path):
    async def main():
        service = Service(config=config_of(tmp_path))
        speaker = CARD.voices[0]
        async with service.http() as http:
            path = f"{VOICES}/{speaker}"
            assert (await http.get(path)).json()["type"] == "builtin"
            answers = [
                await http.post(path, json={"name": "other"}),
                await http.delete(path),
                await http.get(f"{path}/preview"),
                await http.get(f"{path}/download"),
            ]
            for answer in answers:
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (404, "voice_not_found")
                assert f"'{speaker}' is a speaker of the model '{CARD.name}'" in error["message"]
            unknown = await http.delete(f"{VOICES}/nobody")
            assert "The voice 'nobody' does not exist." in unknown.text

    asyncio.run(main())


def test_an_alias_may_be_one_of_openais_names_and_a_default_answers_for_none(tmp_path):
    async def main():
        service = cloning(tmp_path, cards=(CARD, BASE))
        async with service.http() as http:
            await upload(http, "Anna")
            assert (await spoken(http, voice="alloy", model="tts-1")).status_code == 200
            await http.put("/v1/audio/voice_aliases/Alloy", json={"voice": "anna"})
            await http.put("/v1/audio/voice_aliases/narrator", json={"voice": "dylan"})
            for voice in ("alloy", "narrator"):
                assert (await spoken(http, voice=voice, model="tts-1")).status_code == 200
            assert (await spoken(http)).status_code == 200
            await http.put("/v1/audio/default_voice", json={"voice": "Anna"})
            assert (await http.get("/v1/audio/default_voice")).json()["voice"]["name"] == "Anna"
            assert (await spoken(http)).status_code == 200
            await http.delete("/v1/audio/default_voice")
            await http.delete("/v1/audio/voice_aliases/alloy")
            assert (await spoken(http, voice="alloy")).status_code == 200
            refused = await http.put("/v1/audio/voice_aliases/ryan", json={"voice": "anna"})
            assert refused.status_code == 400
            missing = await http.put("/v1/audio/voice_aliases/x", json={"voice": "nobody"})
            assert missing.status_code == 404
        spoke = [(request.model, str(request.voice)) for request in service.talker.requests]
        assert spoke == [
            (CARD.name, "vivian"),
            ("base", "Anna"),
            (CARD.name, "dylan"),
            (CARD.name, "vivian"),
            ("base", "Anna"),
            (CARD.name, "vivian"),
        ]

    asyncio.run(main())


def test_voices_are_blended_by_their_vectors(tmp_path):
    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:
            await upload(http, "a", ref_text="One.")
            await upload(http, "b", sound_file(tone(2, pitch_hz=330)))
            blend = {"blend": [{"voice": "a", "weight": 3}, {"voice": "b"}]}
            for voice in (blend, "a(3)+b(1)", "a+b+a(2)"):
                response = await spoken(http, voice=voice)
                assert response.status_code == 200, response.text
            for voice in ("a", "b"):
                await spoken(http, voice=voice, x_vector_only_mode=True)
        *blended, a, b = [request.voice for request in service.talker.requests]
        mean = 0.75 * a.speaker_vector + 0.25 * b.speaker_vector
        norms = [np.linalg.norm(voice.speaker_vector) for voice in (a, b)]
        for voice in blended:
            assert voice.reference_codes is None
            np.testing.assert_allclose(
                voice.speaker_vector,
                mean / np.linalg.norm(mean) * (0.75 * norms[0] + 0.25 * norms[1]),
                rtol=1e-5,
            )

    asyncio.run(main())


def test_a_vector_is_spoken_with_and_stored(tmp_path):
    async def main():
        service = cloning(tmp_path)
        vector = [0.5, -1.0, 2, 0.0, 1e-3, 3.25, -0.125, 7]
        async with service.http() as http:
            assert (await spoken(http, speaker_embedding=vector)).status_code == 200
            stored = {"name": "V", "speaker_embedding": str(vector)}
            made = await http.post(VOICES, data=stored)
            assert made.status_code == 200, made.text
            assert (await http.get(VOICES)).json()["uploaded_voices"][0]["embedding_dim"] == 8
            assert (await spoken(http, voice="v")).status_code == 200
            assert (await http.get(f"{VOICES}/v/preview")).status_code == 404
            ends = (True, 1e39, 10**400)
            for wrong in (vector[:-1], *([*vector[:-1], end] for end in ends), "x", [[1]]):
                response = await spoken(http, speaker_embedding=wrong)
                assert response.status_code == 400
                assert response.json()["error"]["param"] == "speaker_embedding"
            refused = await http.post(VOICES, json={"name": "W", "speaker_embedding": [1, 2]})
            assert refused.status_code == 400
        for request in service.talker.requests:
            np.testing.assert_array_equal(
                request.voice.speaker_vector, np.array(vector, np.float32)
            )

    asyncio.run(main())


@pytest.mark.parametrize(
    "fields",
    [
        {"ref_audio": _base64(WAV), "ref_text": "Hi."},
        {"ref_audio": "data:audio/wav;base64," + _base64(WAV), "ref_text": "Hi."},
        {"ref_audio": ["data:audio/x-wav;codecs=1;base64," + _base64(WAV)], "ref_text": "Hi."},
        {"references": [{"audio_path": _base64(WAV), "text": "Hi."}]},
    ],
    ids=["base64", "data URL", "list", "references"],
)
def test_a_recording_comes_with_the_request_and_is_encoded_once(tmp_path, fields):
    async def main():
        service = cloning(tmp_path, cards=(CARD, BASE))
        async with service.http() as http:
            for _ in range(2):
                assert (await spoken(http, model="tts-1", **fields)).status_code == 200
            vector_only = {**fields, "x_vector_only_mode": True}
            assert (await spoken(http, **vector_only)).status_code == 200
        assert len(service.encoder.clips) == 1
        first, _, last = [request.voice for request in service.talker.requests]
        assert first.reference_text == "Hi."
        assert first.reference_codes.shape == (25, 4)
        assert last.reference_codes is None
        assert not (tmp_path / "voices").exists()

    asyncio.run(main())


def test_a_recording_comes_in_the_form_of_a_request(tmp_path):
    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:
            fields = {"input": "Hello.", "response_format": "wav", "speed": "1", "seed": "3"}
            response = await http.post(
                "/audio/speech/upload", data=fields, files={"voice_file": ("x", WAV, "audio/mpeg")}
            )
            assert response.status_code == 200, response.text
            assert response.content[:4] == b"RIFF"
            response = await http.post("/v1/audio/speech/upload", data={"input": "Hello."})
            assert response.json()["error"]["code"] == "voice_not_found"
            fields = {"input": "Hello.", "ref_audio": _base64(WAV), "speed": None, "seed": 3}
            response = await http.post("/v1/audio/speech/upload", json=fields)
            assert response.status_code == 200, response.text
            fields = {"input": "Hello.", "ref_audio": _base64(WAV), "speed": [1]}
            response = await http.post("/v1/audio/speech/upload", json=fields)
            assert response.status_code == 400
            assert response.json()["error"]["param"] == "speed"
        assert [request.seed for request in service.talker.requests] == [3, 3]

    asyncio.run(main())


def test_a_checkpoint_that_does_not_clone_keeps_voices_and_says_what_does(tmp_path):
    async def main():
        service = Service(config=config_of(tmp_path))
        async with service.http() as http:
            await upload(http, "Anna")
            for fields in ({"voice": "Anna"}, {"ref_audio": _base64(WAV)}):
                response = await spoken(http, **fields)
                assert response.status_code == 400
                assert "Base" in response.json()["error"]["message"]

    asyncio.run(main())


def test_an_encoder_that_is_away_is_asked_again(tmp_path):
    async def main():
        service = cloning(tmp_path)
        broken = FakeVoiceEncoder(error=StageUnavailable("starting"))
        working, service.encoder = service.encoder, broken
        async with service.http() as http:
            await upload(http, "Anna")
            assert (await spoken(http, voice="Anna")).status_code == 503
            service.encoder = working
            assert (await spoken(http, voice="Anna")).status_code == 200

    asyncio.run(main())


def test_designed_voices_are_spoken_first_and_then_kept(tmp_path):
    async def main():
        design = fake_card(task="voice_design", name="design", voices=(), path="fakes/design")
        service = cloning(tmp_path, cards=(BASE, design))
        client = openai.AsyncOpenAI(
            api_key="x", base_url="http://test/v1", http_client=service.http(), max_retries=0
        )
        made = await client.audio.voices.create(
            type="prompt", name="Sea captain", prompt="An old man.", script_hint="Ahoy there."
        )
        assert (made.type, made.prompt) == ("prompt", "An old man.")
        async with service.http() as http:
            assert (await spoken(http, voice="sea captain")).status_code == 200
        asked, spoke = service.talker.requests
        assert (asked.model, asked.text, asked.instructions) == (
            "design", "Ahoy there.", "An old man.",
        )  # fmt: skip
        assert spoke.voice.reference_text == "Ahoy there."

    asyncio.run(main())


def test_openais_sdk_makes_and_deletes_voices_and_consents(tmp_path):
    async def main():
        service = cloning(tmp_path, require_consent=True)
        client = openai.AsyncOpenAI(
            api_key="x", base_url="http://test/v1", http_client=service.http(), max_retries=0
        )
        audio = client.audio
        sample = ("clip.wav", WAV, "audio/wav")
        with pytest.raises(openai.BadRequestError, match="does not exist"):
            await audio.voices.create(name="Anna", audio_sample=sample, consent="cons_1")
        consent = await audio.voice_consents.create(
            name="Anna's", language="en-US", recording=sample
        )
        assert consent.object == "audio.voice_consent"
        assert (await audio.voice_consents.retrieve(consent.id)) == consent
        renamed = await audio.voice_consents.update(consent.id, name="of Anna")
        assert renamed.name == "of Anna"
        other = await audio.voice_consents.create(name="b", language="de", recording=sample)
        listed = [found.id async for found in audio.voice_consents.list(limit=1)]
        assert sorted(listed) == sorted([consent.id, other.id])
        voice = await audio.voices.create(name="Anna", audio_sample=sample, consent=consent.id)
        assert (voice.object, voice.type, voice.name) == ("audio.voice", "audio_sample", "Anna")
        speech = {"model": "tts-1", "input": "Hello.", "response_format": "pcm"}
        await audio.speech.create(voice={"id": voice.id}, **speech)
        recording = {"ref_audio": _base64(WAV)}
        with pytest.raises(openai.BadRequestError, match="consent"):
            await audio.speech.create(voice="alloy", extra_body=recording, **speech)
        stated = {**recording, "consent": consent.id}
        await audio.speech.create(voice="alloy", extra_body=stated, **speech)
        # Who withdraws a consent takes the voice away.
        gone = await audio.voice_consents.delete(consent.id)
        assert gone.deleted
        with pytest.raises(openai.BadRequestError, match="withdrawn"):
            await audio.speech.create(voice={"id": voice.id}, **speech)
        deleted = await audio.voices.delete(voice.id)
        assert (deleted.object, deleted.deleted) == ("audio.voice.deleted", True)
        with pytest.raises(openai.NotFoundError):
            await audio.voices.delete(voice.id)

    asyncio.run(main())


def test_chatterbox_clients_find_their_routes(tmp_path):
    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:
            made = await http.post(
                "/voices",
                data={"voice_name": "Anna", "language": "en"},
                files={"voice_file": ("anna.mp3", sound_file(tone(2), "MP3"), "audio/mpeg")},
            )
            assert made.status_code == 201
            assert made.json()["voice"]["name"] == "Anna"
            listed = (await http.get("/v1/voices")).json()
            assert listed["count"] == 1
            entry = listed["voices"][0]
            assert entry["file_extension"] == ".flac"
            assert entry["upload_date"][:2] == "20"
            added = await http.post("/voices/Anna/aliases", data={"alias": "narrator"})
            assert added.status_code == 201
            assert added.json()["aliases"] == ["narrator"]
            assert (await http.get("/voices/anna/aliases")).json()["count"] == 1
            names = (await http.get("/voices/all-names")).json()
            assert names == {"voice_names": ["Anna", "narrator"], "count": 2}
            await upload(http, "Zoe")
            another = await http.delete("/voices/Zoe/aliases/narrator")
            assert another.status_code == 404
            assert (await http.delete("/voices/Zoe")).status_code == 200
            removed = await http.delete("/voices/Anna/aliases/Narrator")
            assert removed.json()["aliases"] == []
            renamed = await http.put("/voices/Anna", data={"new_name": "Berta"})
            assert renamed.json()["new_name"] == "Berta"
            default = await http.post("/voices/default", data={"voice_name": "Berta"})
            assert default.json()["default_voice"] == "Berta"
            assert (await http.get("/voices/default")).json()["source"] == "voice_library"
            await http.delete("/voices/default")
            assert (await http.get("/voices/default")).json()["default_voice"] is None
            assert (await http.get("/voices/Berta")).json()["voice"]["name"] == "Berta"
            assert (await http.get("/voices/Berta/download")).content[:4] == b"fLaC"
            assert (await http.post("/voices/cleanup")).json()["count"] == 0
            assert (await http.delete("/v1/voices/Berta")).json()["voice_name"] == "Berta"
            assert (await http.get("/voices/Berta")).status_code == 404

    asyncio.run(main())


def test_vllm_omnis_client_reads_its_answers(tmp_path):
    """Its requests and the fields that it reads of the answers, by its serving_speech.py."""

    async def main():
        service = cloning(tmp_path)
        async with service.http() as http:
            made = await upload(http, "custom", consent="user-consent", ref_text="Hi there.")
            assert made["success"] is True
            assert made["voice"]["name"] == "custom"
            assert {"consent", "created_at", "file_size", "mime_type"} <= made["voice"].keys()
            body = {"task_type": "Base", "voice": "custom", "stream": False, "language": "English"}
            assert (await spoken(http, **body)).status_code == 200
            deleted = (await http.delete(f"{VOICES}/custom")).json()
            assert deleted["success"] is True
            assert (await http.get(VOICES)).json()["uploaded_voices"] == []

    asyncio.run(main())


def test_who_may_not_change_voices_may_speak_with_them(tmp_path):
    async def main():
        async with cloning(tmp_path).http() as http:
            await upload(http, "Anna")
        closed = cloning(tmp_path, uploads=False)
        async with closed.http() as http:
            assert (await spoken(http, voice="Anna")).status_code == 200
            calls = [
                ("POST", VOICES), ("POST", f"{VOICES}/anna"), ("DELETE", f"{VOICES}/anna"),
                ("PUT", "/v1/audio/voice_aliases/x"), ("DELETE", "/v1/audio/default_voice"),
                ("POST", "/v1/audio/voice_consents"), ("POST", "/voices"), ("DELETE", "/voices/a"),
            ]  # fmt: skip
            for method, path in calls:
                response = await http.request(method, path, json={"name": "x", "voice": "anna"})
                assert (method, path, response.status_code) == (method, path, 403)

    asyncio.run(main())


def test_the_defaults_of_the_library():
    voices = IngressConfig().voices
    assert voices == VoicesConfig()
    assert voices.place.endswith("qwen3-tts-serve/voices")
