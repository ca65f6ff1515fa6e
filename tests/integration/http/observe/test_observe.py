"""What the ingress tells of requests: a line each, spans, metrics of all nodes."""

import asyncio
import json
import logging
import subprocess
import sys

import pytest

from serve_app import metrics
from serve_app.config import AccessConfig, IngressConfig, ObserveConfig
from serve_app.errors import StageFailed
from serve_app.http.app import build_api
from serve_app.http.observe.exposition import merged
from serve_app.http.observe.tracing import OpenTelemetryTracer
from serve_app.keys.digest import digest_of
from serve_app.keys.key_file import Key, write
from serve_app.pipeline import timed
from tests.integration.http.service import CARD, NUM_FRAMES, Service
from tests.integration.http.voices.recordings import config_of, upload

PATH = "/v1/audio/speech"
BODY = {"input": "Say nothing of this.", "response_format": "mp3", "voice": "ryan"}
AGENT = """\
# HELP ray_tts_requests_total Speech requests.
# TYPE ray_tts_requests_total counter
ray_tts_requests_total{Component="core_worker",NodeAddress="10.0.0.1",replica="%s",status="200"} 3.0
# HELP ray_node_mem_used Memory.
# TYPE ray_node_mem_used gauge
ray_node_mem_used{ip="10.0.0.1"} 5.0
# HELP ray_tts_audio_rtf Factor.
# TYPE ray_tts_audio_rtf histogram
ray_tts_audio_rtf_bucket{le="0.1",replica="%s"} 2.0
ray_tts_audio_rtf_count{replica="%s"} 2.0
ray_tts_audio_rtf_sum{replica="%s"} 0.1
"""


def lines(caplog):
    return [record.message for record in caplog.records if record.name == "serve_app.requests"]


def sent(service, path=PATH, **options):
    async def main():
        async with service.http() as http:
            return await http.post(path, **{"json": BODY, **options})

    return asyncio.run(main())


def test_a_request_has_one_line_with_all_that_is_known_and_not_its_text(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write(tmp_path / "keys.yaml", [Key(name="tester", hash=digest_of("key"))])
    access = AccessConfig(keys_file=str(tmp_path / "keys.yaml"))
    config = IngressConfig(access=access, observe=ObserveConfig(log_format="json"))
    service = Service(config=config)
    headers = {"api-key": "key", "x-request-id": "req-1", "x-stainless-retry-count": "1"}
    assert sent(service, headers=headers).status_code == 200
    (line,) = lines(caplog)
    known = json.loads(line)
    expected = {
        "id": "req-1",
        "key": "tester",
        "status": 200,
        "voice": "ryan",
        "format": "mp3",
        "transport": "stream",
        "characters": 20,
        "audio_s": 0.8,
        "finish_reason": "stop",
        "retry": 1,
    }
    assert expected.items() <= known.items()
    assert known["first_audio_ms"] <= known["duration_ms"]
    assert "nothing of this" not in caplog.text
    assert service.counts[metrics.RETRIED.name,] == 1
    assert service.gauges[metrics.REQUESTS_OPEN.name,] == 0


@pytest.mark.parametrize(
    ("failing", "options", "said"),
    [
        (False, {"json": {}}, "status=400|error=invalid_request_error"),
        (False, {"path": "/v1/nothing"}, "path=/v1/nothing status=404|error=not_found"),
        (True, {}, "status=500|error=generation_failed"),
        (False, {"headers": {"user-agent": 'a "b" \x1b[1m'}}, '"a \\"b\\" \\u001b[1m"'),
    ],
    ids=["bad", "unknown", "failed", "odd"],
)
def test_a_line_says_what_went_wrong_and_is_a_line(failing, options, said, caplog):
    caplog.set_level(logging.INFO)
    sent(Service(fail_at=0 if failing else None, error=StageFailed("x")), **options)
    (line,) = lines(caplog)
    assert all(part in line for part in said.split("|"))
    assert "\n" not in line


def test_a_stream_that_breaks_off_says_why(caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(Exception, match="broken"):
        sent(Service(fail_at=5, error=StageFailed("broken")))
    (line,) = lines(caplog)
    assert "status=200" in line
    assert "broke=stage_failed" in line


def test_signs_of_life_are_not_worth_a_line(caplog):
    caplog.set_level(logging.INFO)

    async def main():
        async with Service().http() as http:
            for path in ("/health", "/ready", "/v1/models", "/web/", "/web/none.js"):
                await http.get(path)

    asyncio.run(main())
    assert lines(caplog) == []


def test_each_text_of_a_batch_adds_to_its_line(caplog):
    caplog.set_level(logging.INFO)
    items = [{"input": "One."}, {"input": "Two."}]
    assert sent(Service(), f"{PATH}/batch", json={"items": items}).status_code == 200
    (line,) = lines(caplog)
    assert "characters=8" in line
    assert "audio_s=1.6" in line


def test_the_metrics_of_all_nodes_come_as_one_text(tmp_path):
    async def gather():
        return [AGENT % (("a",) * 4), AGENT % (("b",) * 4)]

    async def main():
        service = Service()
        config = config_of(tmp_path)
        status = service.get_status
        service.app = build_api(service.speak, service.catalog, config, status, service, gather)
        async with service.http() as http:
            await upload(http, "Anna")
            return await http.get("/metrics")

    response = asyncio.run(main())
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = response.text
    assert text.count("# TYPE tts_requests_total counter") == 1
    for replica in "ab":
        assert f'tts_requests_total{{replica="{replica}",status="200"}} 3.0\n' in text
        assert f'tts_audio_rtf_bucket{{le="0.1",replica="{replica}"}} 2.0\n' in text
    assert "10.0.0.1" not in text
    assert "node_mem" not in text
    assert "tts_ready 1\n" in text
    kinds = {"audio_sample": 1, "embedding": 0, "prompt": 0, "speaker": len(CARD.voices)}
    for kind, number in kinds.items():
        assert f'tts_voices{{type="{kind}"}} {number}\n' in text
    parser = pytest.importorskip("prometheus_client.parser")
    names = {family.name for family in parser.text_string_to_metric_families(text)}
    assert {"tts_requests", "tts_audio_rtf", "tts_build_info", "tts_ready"} <= names


def test_a_text_that_no_one_foresaw_breaks_nothing():
    assert merged(["", "nonsense", "# \n", "# EOF", "ray_tts_requests_total 1"]) == []


@pytest.mark.parametrize(("mode", "status"), [("off", 404), ("open", 200), ("key", 401)])
def test_metrics_are_for_whom_the_configuration_says(tmp_path, mode, status):
    async def gather():
        return []

    async def main():
        write(tmp_path / "keys.yaml", [Key(name="tester", hash=digest_of("key"))])
        access = AccessConfig(keys_file=str(tmp_path / "keys.yaml"))
        config = IngressConfig(access=access, observe=ObserveConfig(metrics=mode))
        service = Service()
        service.app = build_api(
            service.speak, service.catalog, config, service.get_status, service, gather
        )
        async with service.http() as http:
            return (await http.get("/metrics")).status_code

    assert asyncio.run(main()) == status


def test_a_request_its_units_and_its_stages_are_spans_of_one_trace():
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    memory = InMemorySpanExporter()
    provider = sdk.TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    service = Service()
    tracer = OpenTelemetryTracer(provider)

    def speak(request):
        return timed("stages", service.speak(request))

    status = service.get_status
    service.app = build_api(speak, service.catalog, IngressConfig(), status, tracer=tracer)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    assert sent(service, headers=headers).status_code == 200
    spans = {span.name: span for span in memory.get_finished_spans()}
    request, unit = spans[f"POST {PATH}"], spans["unit"]
    assert format(request.context.trace_id, "032x") == trace_id
    assert request.attributes["tts.voice"] == "ryan"
    assert unit.parent.span_id == request.context.span_id
    assert unit.attributes["tts.frames"] == NUM_FRAMES
    stages = [span for name, span in spans.items() if name not in (request.name, "unit")]
    assert stages
    for stage in stages:
        assert stage.parent.span_id == unit.context.span_id
        assert stage.end_time >= stage.start_time


def test_without_tracing_nothing_of_it_is_imported():
    code = (
        "import sys; from serve_app.http.app import build_api;"
        "from serve_app.http.observe.tracing import make_tracer; make_tracer(False);"
        "sys.exit('opentelemetry' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
