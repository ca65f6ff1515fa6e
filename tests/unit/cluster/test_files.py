"""Every file of cluster/ passes the validator that its reader would use."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from serve_app import serve_config
from serve_app.config import AppConfig, IngressConfig
from serve_app.deployments.limits import deployment_options

CLUSTER = Path(__file__).parents[3] / "cluster"
KUBERNETES = "1.34"


def documents() -> list[dict[str, Any]]:
    files = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
    return [d for file in files for d in yaml.safe_load_all(file.read_text("utf-8"))]


def ray_service() -> dict[str, Any]:
    return next(d for d in documents() if d["kind"] == "RayService")


def strict(schema: Any) -> Any:
    """As the API server reads it, but with every unknown key refused."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {key: strict(value) for key, value in schema.items()}
    if made.pop("x-kubernetes-int-or-string", False):
        made = {"type": ["integer", "string"]}
    if "properties" in made and not made.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def crd() -> Any:
    return strict(json.loads(Path(__file__).with_name("rayservice-v1.json").read_text("utf-8")))


def groups() -> list[dict[str, Any]]:
    cluster = ray_service()["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@pytest.mark.parametrize(
    "document", documents(), ids=lambda d: f"{d['kind']}-{d['metadata']['name']}"
)
def test_each_manifest_is_what_kubernetes_takes(document: dict[str, Any]) -> None:
    if document["kind"] == "RayService":
        jsonschema.validate(document, crd(), jsonschema.Draft7Validator)
    else:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_each_pod_of_the_ray_service_is_what_kubernetes_takes() -> None:
    for group in groups():
        template = {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "pod"}}
        template["template"] = group["template"]
        kubernetes_validate.validate(template, KUBERNETES, strict=True)


def test_a_wrong_key_or_type_is_found() -> None:
    wrong = ray_service()
    wrong["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="minReplica"):
        jsonschema.validate(wrong, crd(), jsonschema.Draft7Validator)


def test_what_serve_gets_is_a_configuration_of_ours() -> None:
    config = yaml.safe_load(ray_service()["spec"]["serveConfigV2"])
    assert list(serve_config.find_problems(config)) == []
    AppConfig.model_validate(config["applications"][0]["args"])
    shipped = serve_config.load(CLUSTER.parent / "configs" / "serve.fused.yaml")
    assert config["controller_options"] == shipped["controller_options"]
    assert config == serve_config.load(CLUSTER / "serve.yaml")


def served() -> dict[str, Any]:
    (application,) = yaml.safe_load((CLUSTER / "serve.yaml").read_text("utf-8"))["applications"]
    return application


def machines() -> dict[str, Any]:
    """Kinds of `ray up`."""
    config = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text("utf-8"))
    return config["available_node_types"]


def test_replicas_are_sent_to_nodes_that_there_are() -> None:
    args = served()["args"]
    wanted = [args[part]["node_labels"] for part in ("talker", "voice_encoder", "ingress")]
    for there in (
        [group.get("labels") for group in groups()],
        [node.get("labels") for node in machines().values()],
    ):
        assert all(labels in there for labels in wanted)


def test_each_pod_that_clients_come_to_has_an_ingress_and_so_a_proxy() -> None:
    (group,) = [g for g in groups() if g.get("groupName") == "ingress"]
    (ingress,) = [d for d in served()["deployments"] if d["name"] == "Ingress"]
    scaling, per_node = ingress["autoscaling_config"], ingress["max_replicas_per_node"]
    assert scaling["min_replicas"] >= group["minReplicas"] == group["replicas"]
    assert scaling["max_replicas"] <= per_node * group["maxReplicas"]
    virtual = machines()["ingress"]
    assert scaling["min_replicas"] >= virtual["min_workers"] == group["minReplicas"]
    assert scaling["max_replicas"] <= per_node * virtual["max_workers"]


def test_clients_are_sent_to_ingresses_of_the_cluster_that_serves() -> None:
    """KubeRay sets the selector, to all pods of that cluster: the port's name says which of them.
    Without a port `serve` of the head it makes no Service, and the RayService is never ready.
    """
    service = {"apiVersion": "v1", "kind": "Service", **ray_service()["spec"]["serveService"]}
    kubernetes_validate.validate(service, KUBERNETES, strict=True)
    (port,) = service["spec"]["ports"]
    named = {
        group.get("groupName", "head"): {
            found["name"]: found["containerPort"]
            for found in group["template"]["spec"]["containers"][0].get("ports", [])
        }
        for group in groups()
    }
    served_at = yaml.safe_load(ray_service()["spec"]["serveConfigV2"])["http_options"]["port"]
    assert named["head"][port["name"]] == served_at
    assert [name for name, ports in named.items() if port["targetPort"] in ports] == ["ingress"]
    assert named["ingress"][port["targetPort"]] == served_at


def mounts(group: dict[str, Any]) -> list[str]:
    (container,) = group["template"]["spec"]["containers"]
    return [mount["mountPath"] for mount in container.get("volumeMounts", [])]


def test_no_more_stages_are_asked_for_than_there_may_be_gpus() -> None:
    """Or replicas wait for ever, and the cluster asks its cloud for machines it may not have."""
    config = AppConfig.model_validate(served()["args"])
    (stage,) = [d for d in served()["deployments"] if d["name"] == "Fused"]
    most = deployment_options(config, 655.0, 64)["Fused"]["autoscaling_config"]["max_replicas"]
    most = stage.get("autoscaling_config", {}).get("max_replicas", most)
    (pods,) = [g["maxReplicas"] for g in groups() if g.get("groupName") == "gpu"]
    per_node = stage["max_replicas_per_node"]
    assert most <= per_node * min(pods, machines()["gpu"]["max_workers"])
    up = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text("utf-8"))
    assert sum(node["max_workers"] for node in machines().values()) <= up["max_workers"]


def test_what_ingresses_share_is_mounted_where_they_look() -> None:
    ingress = served()["args"]["ingress"]
    wanted = [
        ingress["voices"]["path"],
        ingress["jobs"]["directory"],
        str(Path(ingress["access"]["keys_file"]).parent),
    ]
    (group,) = [g for g in groups() if g.get("groupName") == "ingress"]
    assert mounts(group) == ["/models", *wanted]
    up = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text("utf-8"))
    given = [option.split(":")[-1] for option in up["docker"]["run_options"] if option[:2] == "-v"]
    given += [str(Path(target).parent) for target in up["file_mounts"]]
    assert given == wanted


def test_every_pod_finds_the_checkpoint_in_the_same_place() -> None:
    (home,) = re.findall(r"HF_HOME=(\S+)", (CLUSTER / "Dockerfile").read_text("utf-8"))
    assert [home in mounts(group) for group in groups()] == [True] * 3


def test_no_volume_hides_what_the_image_has_and_every_cache_has_one() -> None:
    image = (CLUSTER / "Dockerfile").read_text("utf-8")
    compose = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))
    volumes = [volume.split(":")[1] for volume in compose["services"]["gpu"]["volumes"]]
    gpu = mounts(next(g for g in groups() if g.get("groupName") == "gpu"))
    kernels = re.findall(r"TRITON_CACHE_DIR=(\S+)", image)
    caches = re.findall(r"(?:HF_HOME|XDG_CACHE_HOME|VLLM_CACHE_ROOT|CUDA_CACHE_PATH)=(\S+)", image)
    assert len(caches) == 4
    for mounted in (volumes, gpu):
        assert not {*kernels} & {*mounted}
        assert all(any(cache.startswith(place) for place in mounted) for cache in caches)
    assert "".join(re.findall(r"XDG_DATA_HOME=(\S+)", image)) in volumes


def test_whoever_a_cluster_has_it_run_as_can_write_where_it_must() -> None:
    """OpenShift chooses a user, who is of group 0. Of all else nothing is the server's."""
    image = (CLUSTER / "Dockerfile").read_text("utf-8")
    compose = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))
    (made,) = re.findall(r"mkdir -p (.*?) \\", image)
    wanted = {volume.split(":")[1] for volume in compose["services"]["gpu"]["volumes"]}
    wanted |= {*re.findall(r"TRITON_CACHE_DIR=(\S+)", image)}
    assert {*made.split()} == wanted
    assert f"chown tts:root {made} && chmod 2775 {made}\n" in image
    assert len(re.findall(r"\b(?:chown|chgrp)\b", image)) == 1
    (fill,) = re.findall(r"^RUN (.*kernel_cache fill)", image, re.MULTILINE)
    assert fill.startswith("umask 002 && ")


def test_rays_object_store_fits_the_shared_memory_of_a_container() -> None:
    """Else Ray keeps it in a file; half is left for what the stages share."""
    image = (CLUSTER / "Dockerfile").read_text("utf-8")
    (store,) = re.findall(r"RAY_DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES=(\d+)", image)
    compose = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))
    up = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text("utf-8"))
    given = [compose["services"][name]["shm_size"] for name in ("gpu", "cpu")]
    given += [o.split("=")[1] for o in up["docker"]["run_options"] if o.startswith("--shm-size")]
    assert len(given) == 3
    for size in given:
        assert 2 * int(store) <= int(re.match(r"\d+", size)[0]) << 30


def test_pods_outlast_their_drain_and_the_drain_the_longest_speech() -> None:
    longest_s = 8192 / 12.5
    for group in groups()[1:]:
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (drain,) = [
            int(variable["value"])
            for variable in container["env"]
            if variable["name"] == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"
        ]
        assert longest_s < drain < pod["terminationGracePeriodSeconds"]
        assert "lifecycle" not in container
    assert ray_service()["spec"]["rayClusterDeletionDelaySeconds"] > longest_s


def test_a_container_is_given_the_time_that_its_streams_have() -> None:
    compose = yaml.safe_load((CLUSTER / "compose.yaml").read_text("utf-8"))
    (found,) = {compose["services"][name]["stop_grace_period"] for name in ("gpu", "cpu")}
    minutes = int(found.removesuffix("m"))
    assert 60 * minutes >= IngressConfig().drain_s + 10


def test_no_pod_runs_as_root_or_without_limits() -> None:
    pods = [group["template"]["spec"] for group in groups()]
    pods += [d["spec"]["template"]["spec"] for d in documents() if d["kind"] == "StatefulSet"]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"]
        for container in pod["containers"]:
            assert not container["securityContext"]["allowPrivilegeEscalation"]
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])


def test_budgets_are_numbers_of_pods_that_stay() -> None:
    """Kubernetes evicts no pod under another budget: what owns it, a RayCluster, has no scale."""
    budgets = {d["metadata"]["name"]: d["spec"] for d in documents() if "Budget" in d["kind"]}
    assert len(budgets) == 3
    labels = [group["template"]["metadata"]["labels"] for group in groups()]
    for spec in budgets.values():
        assert isinstance(spec["minAvailable"], int)
        assert "maxUnavailable" not in spec
        assert (
            sum(spec["selector"]["matchLabels"].items() <= found.items() for found in labels) == 1
        )
    kept = {name: spec["minAvailable"] for name, spec in budgets.items()}
    (ingress,) = [g for g in groups() if g.get("groupName") == "ingress"]
    assert kept["tts-ingress"] < ingress["minReplicas"]


def test_the_ray_up_file_is_one() -> None:
    import ray.autoscaler

    schema = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())
    config = yaml.safe_load((CLUSTER / "ray-up.yaml").read_text("utf-8"))
    jsonschema.validate(config, schema)
    assert config["head_node_type"] in config["available_node_types"]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_compose_file_is_one() -> None:
    file = str(CLUSTER / "compose.yaml")
    checker = (sys.executable, "-m", "check_jsonschema")
    done = run(*checker, "--builtin-schema", "vendor.compose-spec", file)
    assert done.returncode == 0, done.stdout


def test_what_the_compose_file_is_told_and_mounts_is_there() -> None:
    file = CLUSTER / "compose.yaml"
    services = yaml.safe_load(file.read_text("utf-8"))["services"]
    profiles = {profile for service in services.values() for profile in service["profiles"]}
    said = [path.read_text("utf-8") for path in (file, CLUSTER / "README.md")]
    named = {name for text in said for name in re.findall(r"--profile (\w+)", text)}
    assert named == profiles
    mounts = [volume for service in services.values() for volume in service["volumes"]]
    here = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert here
    assert [path for path in here if not (CLUSTER / path).is_file()] == []


def test_the_image_for_cpus_has_what_the_setup_script_makes_and_no_more() -> None:
    pattern = r"pip uninstall (?:--\w+ )*((?:torch\w+ ?)+)"
    setup = (CLUSTER.parent / "scripts" / "setup-venv.sh").read_text("utf-8")
    image = (CLUSTER / "Dockerfile").read_text("utf-8")
    found = [re.findall(pattern, text)[0].split() for text in (setup, image)]
    assert found[0] == found[1] != []


@pytest.mark.parametrize("extra", ["gpu", "cpu"])
def test_packages_are_those_of_the_project_and_a_layer_of_their_own(extra: str) -> None:
    """Or each change of the code has gigabytes installed, pushed and pulled again."""
    image = (CLUSTER / "Dockerfile").read_text("utf-8")
    stage = image.split(f"FROM base AS {extra}\n")[1].split("\nFROM ")[0]
    (program,) = re.findall(r"python -c '(.*?)' > /tmp/needs", stage)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=CLUSTER.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    project = tomllib.loads((CLUSTER.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert done.stdout.splitlines() == [
        *project["dependencies"],
        *project["optional-dependencies"][extra],
    ]
    order = ["--requirement /tmp/needs", "COPY serve_app", "pip install --compile --no-deps ."]
    places = [stage.index(part) for part in order]
    assert places == sorted(places)
    assert not re.search("COPY .*serve_app", image.split("FROM base AS")[0])


def test_the_image_has_what_the_probes_of_kuberay_call() -> None:
    """Where a group states none of its own: without them its pods are never ready, and none of
    them may be evicted.
    """
    probed = [g["template"]["spec"]["containers"][0] for g in groups()]
    assert any("readinessProbe" not in container for container in probed)
    image = (CLUSTER / "Dockerfile").read_text("utf-8")
    packages = re.findall(r"apt-get install (.*?) \\", image)[0].split()
    assert {"wget", "tini", "gcc"} <= set(packages)


def service_unit() -> dict[str, str]:
    """The settings of the unit file that are stated once."""
    text = (CLUSTER / "qwen3-tts.service").read_text("utf-8")
    return dict(re.findall(r"^(\w+)=(.*)$", text, re.M))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd's own checker")
def test_the_unit_file_is_one(tmp_path: Path) -> None:
    text = (CLUSTER / "qwen3-tts.service").read_text("utf-8")
    interpreter = service_unit()["ExecStart"].split()[0]
    file = tmp_path / "qwen3-tts.service"
    file.write_text(text.replace(interpreter, sys.executable), "utf-8")
    done = run("systemd-analyze", "verify", str(file))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_service_manager_gives_streams_their_time_and_starts_nothing_again_in_vain() -> None:
    unit = service_unit()
    assert unit["Type"] == "notify"
    assert unit["KillMode"] == "mixed"
    assert int(unit["TimeoutStopSec"]) >= IngressConfig().drain_s + 10
    started = unit["ExecStart"].split()
    assert started[1:3] == ["-m", "serve_app"]
    assert (CLUSTER.parent / started[3]).is_file()
    # With which the launcher refuses what it is given.
    assert unit["RestartPreventExitStatus"] == "2"
    told = unit["Documentation"].removeprefix(f"file://{unit['WorkingDirectory']}/")
    assert (CLUSTER.parent / told).is_file()


def test_the_image_is_sent_neither_environments_nor_byte_code_and_all_that_it_copies() -> None:
    lines = (CLUSTER.parent / ".dockerignore").read_text("utf-8").splitlines()
    ignored = [line for line in lines if not line.startswith("#")]
    assert {".*", "**/__pycache__"} <= {*ignored}
    patterns = [pattern.removeprefix("**/") for pattern in ignored]
    tracked = run("git", "-C", str(CLUSTER.parent), "ls-files", "serve_app", "configs", "cluster")
    if tracked.returncode == 0:
        tops = {*tracked.stdout.split(), "pyproject.toml", "README.md", "LICENSE"}
        assert len(tops) > 100
        assert [
            path
            for path in tops
            for part in path.split("/")[:1]
            for pattern in patterns
            if fnmatch(part, pattern)
        ] == []


def test_the_image_is_built_by_the_rules() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = run(str(hadolint), "--failure-threshold", "style", str(CLUSTER / "Dockerfile"))
    assert done.returncode == 0, done.stdout


def test_the_image_fills_the_kernels_that_are_supported() -> None:
    from serve_app.models.kernel_cache.absent_gpu import SHARED_BYTES

    text = (CLUSTER / "Dockerfile").read_text("utf-8")
    wanted = " ".join(f"{capability / 10:.1f}" for capability in SHARED_BYTES)
    assert f'ARG CAPABILITIES="{wanted}"' in text
    copied = [word for line in re.findall(r"^COPY (.*)$", text, re.M) for word in line.split()[:-1]]
    assert "cluster/serve.yaml" in copied
    assert [path for path in copied if not (CLUSTER.parent / path).exists()] == []
