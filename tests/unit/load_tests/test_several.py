"""Several checkpoints beside single ones: what is served, what is asked, what is reported."""

import asyncio
import io
import json

import pytest
import soundfile

from load_tests.loops.level import Level
from load_tests.loops.runner import BurstLoop, ClosedLoop, Plan, Run
from load_tests.several import __main__ as command
from load_tests.several import clips, report
from load_tests.several.settings import TOGETHER, Model, config_of, model_of, parse
from serve_app import serve_config
from tests.unit.load_tests.values import result

CLOSED = ClosedLoop(4, 100)


def level(plan: Plan = CLOSED):
    return Level.of(Run(plan, [result() for _ in range(8)], window=(100.0, 101.0)))


def arguments(tmp_path, *more):
    args = parse(["--out", str(tmp_path), *more])
    args.gpus = 1
    return args


def test_together_and_alone_the_models_have_the_same_settings(tmp_path):
    args = arguments(tmp_path, "--capacity", "8", "--profile", "throughput")
    base, custom, design = args.models
    together = config_of(args, args.models, tmp_path / "library")
    assert not list(serve_config.find_problems(together))
    front, *behind = together["applications"]
    alone = [config_of(args, [m], tmp_path / "library")["applications"] for m in args.models]
    assert [len(applications) for applications in alone] == [1, 1, 1]
    for (single,), one in zip(alone, behind, strict=True):
        for key in ("model", "served_model_name", "placement", "profile"):
            assert single["args"][key] == one["args"][key]
        assert single["args"]["talker"]["max_num_seqs"] == 8
        assert one["args"]["talker"]["max_num_seqs"] == 8
        # But for their part of the GPU: with the others it is one.
        assert single["args"]["talker"]["num_gpus"] == 0.5
        assert one["args"]["talker"]["num_gpus"] == pytest.approx(0.5 / 3, abs=1e-3)
    # What one server has encoded the next one need not.
    places = [a["args"]["ingress"]["voices"]["path"] for a in (front, *(s for (s,) in alone))]
    assert places == [str(tmp_path / "library")] * 4
    assert [Model(m.name, m.size, m.task).folder for m in args.models] == [
        "0.6b-base",
        "1.7b-custom-voice",
        "1.7b-voice-design",
    ]
    assert args.servers == [TOGETHER, base.name, custom.name, design.name]


def test_each_task_is_asked_for_what_it_can(tmp_path):
    args = arguments(tmp_path, "--frames", "7")
    bodies = {m.task: json.loads(m.workload(args).call(3).body) for m in args.models}
    assert bodies["base"]["voice"] == "Bench"
    assert bodies["custom_voice"]["voice"] == "ryan"
    assert "voice" not in bodies["voice_design"]
    assert bodies["voice_design"]["instructions"]
    for model in args.models:
        body = bodies[model.task]
        assert (body["model"], body["max_new_tokens"]) == (model.name, 7)
        # The same text and the same random numbers for each.
        assert (body["input"], body["seed"]) == (bodies["base"]["input"], bodies["base"]["seed"])


@pytest.mark.parametrize("text", ["a", "a=0.6b", "a=9b:base", "=tiny:base", "together=tiny:base"])
def test_what_is_no_model_is_refused(text):
    with pytest.raises(Exception, match="is not NAME=SIZE:TASK"):
        model_of(text)


def test_a_server_is_one_of_the_models(tmp_path, capsys):
    for more in (["--servers", "nobody"], ["--models", "a=tiny:base", "a=tiny:custom_voice"]):
        with pytest.raises(SystemExit):
            arguments(tmp_path, *more)
    assert "there is no nobody" in capsys.readouterr().err


def test_recordings_are_as_long_as_they_shall_be_and_all_different():
    made = [clips.recording(3, seed) for seed in range(3)]
    for data in made:
        samples, rate_hz = soundfile.read(io.BytesIO(data))
        assert len(samples) == 3 * rate_hz
        assert 0.1 < abs(samples).max() < 1
    assert len(set(made)) == 3
    assert made[1] == clips.recording(3, 1)


def measured(models, rows, **more):
    server = command.Measured(models, ready_s=21.04, memory_mib={"idle": [100]}, rows=rows)
    for name, value in more.items():
        setattr(server, name, value)
    facts = {"gpus": [], "cpus": 2, "commit": "abc", "load_average": 0.5}
    return json.loads(json.dumps({"facts": facts, **server.as_json()}))


def test_the_report_puts_each_model_beside_itself_alone():
    one = command.Row("a", "none", 4, level())
    cold = command.Row("a", "none", 8, level(BurstLoop(8, 1, cold=True)))
    beside = [command.Row("a", "busy", 4, level()), command.Row("a", "idle", 4, level())]
    voices = {
        "first_ms": 9876.5,
        "is_new": True,
        "new_ms": {3: 50.0, 10: 64.0},
        "voice_ms": {3: 20.0, 10: 34.0},
        "again_ms": {3: 30.25, 10: 30.0},
        "stored_ms": {"in context": 29.0},
    }
    text = report.markdown(
        {
            TOGETHER: measured(
                ["a", "b"],
                beside,
                voices=voices,
                memory_mib={"idle": [], "peak": [7, 8]},
                is_whole=True,
            ),
            "a": measured(["a"], [one, cold], notes=["something broke"]),
        }
    )
    lines = text.splitlines()
    assert [line.split(" | ")[1:3] for line in lines if line.startswith("| a | ")][:4] == [
        ["none", "cold"],
        ["none", "closed"],
        ["idle", "closed"],
        ["busy", "closed"],
    ]
    assert lines.count("  - not all of it was measured") == 1
    assert "| 3 s | 50.0 | 20.0 | 30.2 |" in lines
    assert "The voice took 2.0 ms for each second of a recording, and 14.0 ms beside." in lines
    assert "- voice of the library, uploaded, until it was heard: 9876" in lines
    assert "| together | - | 7/8 |" in lines
    assert "  - something broke" in lines
    assert "ready after 21.0 s" in text


def test_a_refused_voice_is_asked_for_again_only_where_it_may_become_known():
    """A 400 of an ingress that has not seen the voice, one of one that never will, and a 403."""

    async def heard_of(statuses, known_s):
        left = list(statuses)

        async def answer(reader, writer):
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            is_speech = head.startswith("POST /v1/audio/speech ")
            status = left.pop(0) if is_speech else 404 if head.startswith("GET") else 201
            said = f"HTTP/1.1 {status} -\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno"
            writer.write(said.encode())
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            _, port = server.sockets[0].getsockname()
            with pytest.raises(clips.Failed, match=str(statuses[-1])):
                await clips.keep_voice(f"http://127.0.0.1:{port}", "a", 5, known_s)
        return not left

    assert asyncio.run(heard_of([400, 503, 400, 403], 60))
    assert asyncio.run(heard_of([400], 0))
