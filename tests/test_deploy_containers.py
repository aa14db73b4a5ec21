"""deploy/compose and deploy/kubernetes: official schemas, `aoi`'s own command line, and their probes really run."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import kubernetes_validate
import pytest
import yaml
from aoi_words import check_command, env_file, settings_of
from conftest import wait_until

from pipeline.metrics import STILL_S, worker_trouble
from pipeline.metrics_server import MetricsServer
from pipeline.redis_binary import find_server

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose/compose.yaml").read_text())
SERVICES = COMPOSE["services"]
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KUSTOMIZATION = yaml.safe_load((DEPLOY / "kustomization.yaml").read_text())
OLDEST, NEWEST = "1.28", "1.34"  # Kubernetes releases


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def run(*words: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=60, check=False, **more
    )


def documents() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in MANIFESTS:
        for document in yaml.safe_load_all(path.read_text()):
            yield path.name, document


def of_kind(kind: str, name: str = "") -> dict[str, Any]:
    (found,) = (d for _, d in documents() if d["kind"] == kind and name in ("", d["metadata"]["name"]))
    return found


def container(kind: str, name: str) -> dict[str, Any]:
    (found,) = of_kind(kind, name)["spec"]["template"]["spec"]["containers"]
    return cast("dict[str, Any]", found)


# -------------------------------------------------------------- compose


def test_compose_file_is_one(tmp_path: Path) -> None:
    """By the Compose specification's own JSON schema, which finds a misspelt key."""
    check = (tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec")
    done = run(*check, DEPLOY / "compose/compose.yaml")
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "compose.yaml"
    wrong.write_text((DEPLOY / "compose/compose.yaml").read_text().replace("stop_grace_period", "stop_grace_periods"))
    assert "stop_grace_periods" in run(*check, wrong).stdout


@pytest.mark.parametrize("name", ["worker", "source", "status"])
def test_compose_runs_what_aoi_understands(name: str) -> None:
    """Each command line with the settings of its files and its own; files that make-passwords writes among them."""
    service = SERVICES[name]
    settings = {"AOI_URL": "redis://aoi-x:y@redis:6379/0", **service.get("environment", {})}
    for file in service["env_file"]:
        if not file.startswith("secrets/"):
            settings |= env_file((DEPLOY / "compose" / file).read_text())
        else:
            assert file.removeprefix("secrets/").removesuffix(".env") in ("producer", "worker", "viewer")
    assert settings.keys() <= settings_of("work", "produce")
    params = check_command(service["command"], settings).params
    assert params["line"] == "line1"
    assert params.get("metrics", ("127.0.0.1", 9108)) == ("127.0.0.1", 9108)


@pytest.mark.parametrize("name", SERVICES)
def test_compose_services_are_hardened_and_limited(name: str) -> None:
    """No root, nothing to write to but what is named, limits on memory and processes, nothing published."""
    service = SERVICES[name]
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "pids_limit"} <= service.keys()
    assert not {"ports", "privileged", "network_mode", "devices"} & service.keys()
    assert service.get("user", "10001:10001").split(":")[0] != "0"
    if name in ("redis", "worker", "source"):
        assert {"healthcheck", "stop_grace_period"} <= service.keys()
        assert service["restart"] == "unless-stopped"


def test_no_password_is_in_a_file_of_ours() -> None:
    """Secrets come from files that git ignores; no URL with a password, no value for one, stands in deploy/."""
    for path in filter(Path.is_file, DEPLOY.rglob("*")):
        if path.suffix != ".json":
            text = path.read_text()
            assert not re.search(r"://[\w-]+:[0-9a-f]{8,}@", text), path
            assert not re.search(r"(REDISCLI_AUTH|PASSWORD)[=:] *[\"']?[0-9a-f]{8,}", text), path
    for secret in ("compose/secrets/worker.env", "kubernetes/secrets/worker.env"):
        done = run("git", "check-ignore", "-q", f"deploy/{secret}", cwd=ROOT)
        assert done.returncode in (0, 128), f"{secret} is not ignored by git"  # 128: no git checkout


# -------------------------------------------------------------- the image


def test_image_is_made_by_the_rules() -> None:
    """hadolint has nothing to say about the Dockerfile."""
    done = run(tool("hadolint"), DEPLOY / "compose/Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_image_has_all_that_aoi_is_made_of() -> None:
    """What it copies exists, is not kept out by the ignore file, and holds every package of setup.cfg."""
    text = (DEPLOY / "compose/Dockerfile").read_text()
    copied = [word for row in re.findall(r"^COPY (?!--)(.*) \S+$", text, re.M) for word in row.split()]
    ignore = (DEPLOY / "compose/Dockerfile.dockerignore").read_text().splitlines()
    assert [row.removeprefix("!") for row in ignore if row.startswith("!")] == copied
    assert all((ROOT / name).exists() for name in copied)
    packages = re.search(r"packages =\n((?:    \S+\n)+)", (ROOT / "setup.cfg").read_text())
    assert packages
    told = {name.strip() for name in packages[1].splitlines()}
    folders = {path.parent for top in ("pipeline", "engines", "bench") for path in (ROOT / top).rglob("*.py")}
    assert told == {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert {name.split(".")[0] for name in told} <= set(copied)
    assert "console_scripts =\n    aoi = pipeline.cli:main" in (ROOT / "setup.cfg").read_text()
    assert 'ENTRYPOINT ["aoi"]' in text
    assert re.search(r"^USER 10001:10001$", text, re.M)


# -------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("release", [OLDEST, NEWEST])
def test_manifests_are_what_kubernetes_takes(release: str) -> None:
    """By the schemas of the API, no unknown field allowed; KEDA's kinds have a test of their own."""
    checked = 0
    for _, document in documents():
        if not document["apiVersion"].startswith("keda.sh/"):
            kubernetes_validate.validate(document, release, strict=True)
            checked += 1
    assert checked >= 9


def test_a_misspelt_field_is_found() -> None:
    """The check above is one."""
    document = of_kind("Deployment")
    document["spec"]["template"]["spec"]["terminationGracePeriodSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, NEWEST, strict=True)


# KEDA 2.20: config/crd/bases/keda.sh_scaledobjects.yaml, keda.sh_triggerauthentications.yaml and the parameters in
# pkg/scalers/redis_streams_scaler.go and redis_scaler.go.
SCALED_OBJECT = {
    "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "idleReplicaCount", "pollingInterval", "cooldownPeriod",
    "initialCooldownPeriod", "fallback", "advanced", "triggers",
}  # fmt: skip
REDIS_STREAMS = {
    "address", "host", "port", "username", "stream", "consumerGroup", "pendingEntriesCount", "streamLength",
    "lagCount", "activationLagCount", "databaseIndex", "enableTLS", "unsafeSsl",
}  # fmt: skip
CREDENTIALS = {"username", "password", "tls", "ca", "cert", "key", "keyPassword"}


def test_scaler_is_what_keda_takes() -> None:
    """Fields, the trigger's parameters as text, and its HPA part by Kubernetes' own schema."""
    spec = of_kind("ScaledObject")["spec"]
    assert spec.keys() <= SCALED_OBJECT
    assert spec["fallback"].keys() <= {"failureThreshold", "replicas", "behavior"}
    assert spec["scaleTargetRef"] == {"name": of_kind("Deployment")["metadata"]["name"]}
    (trigger,) = spec["triggers"]
    assert trigger.keys() <= {"type", "name", "metadata", "authenticationRef", "metricType", "useCachedMetrics"}
    assert trigger["type"] == "redis-streams"
    assert trigger["metadata"].keys() <= REDIS_STREAMS
    assert all(isinstance(value, str) for value in trigger["metadata"].values())
    login = of_kind("TriggerAuthentication")
    assert trigger["authenticationRef"] == {"name": login["metadata"]["name"]}
    for row in login["spec"]["secretTargetRef"]:
        assert row.keys() == {"parameter", "name", "key"}
        assert row["parameter"] in CREDENTIALS
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "x"}
    hpa = {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "x"}}
    hpa["spec"] = {"maxReplicas": 2, "scaleTargetRef": target, "behavior": behavior}  # type: ignore[assignment]
    kubernetes_validate.validate(hpa, NEWEST, strict=True)


def test_scaler_counts_the_line_that_its_workers_inspect() -> None:
    """By the length of the frames' stream, which is the number of frames without a verdict, on its own Redis."""
    told = of_kind("ScaledObject")["spec"]["triggers"][0]["metadata"]
    line = of_kind("ConfigMap")["data"]["AOI_LINE"]
    assert told["stream"] == f"aoi:{{{line}}}:frames"
    assert "consumerGroup" not in told, "with one KEDA counts what workers hold, not what waits"
    service, namespace = of_kind("Service")["metadata"]["name"], of_kind("Namespace")["metadata"]["name"]
    assert told["address"] == f"{service}.{namespace}.svc.cluster.local:6379"


def test_workers_run_what_aoi_understands() -> None:
    """The container's arguments with the line's settings parse; each setting is one of `aoi work`."""
    worker, settings = container("Deployment", "line1-worker"), of_kind("ConfigMap")["data"]
    settings |= {row["name"]: "pod-1" for row in worker["env"]}
    assert settings.keys() <= settings_of("work")
    params = check_command(worker["args"], {**settings, "AOI_URL": "redis://a:b@redis/0"}).params
    assert (params["line"], params["name"], params["metrics"]) == ("line1", "pod-1", ("0.0.0.0", 9108))
    assert params["threads"] == int(worker["resources"]["limits"]["cpu"])
    assert worker["ports"] == [{"name": "metrics", "containerPort": 9108}]


def test_everything_that_is_named_is_there() -> None:
    """Secrets, config maps, volumes and labels: what one manifest names another one makes."""
    made = {(d["kind"], d["metadata"]["name"]) for _, d in documents()}
    made |= {("ConfigMap", row["name"]) for row in KUSTOMIZATION["configMapGenerator"]}
    text = "".join(path.read_text() for path in MANIFESTS)
    named = {("ConfigMap", name) for name in re.findall(r"configMap(?:Ref)?: \{name: ([\w-]+)\}", text)}
    named |= {
        ("Secret", name)
        for name in re.findall(r"(?:secretRef|secretKeyRef|secret): \{(?:secretN|n)ame: ([\w-]+)", text)
    }
    named |= {("Secret", row["name"]) for row in of_kind("TriggerAuthentication")["spec"]["secretTargetRef"]}
    assert len(named) == 5
    assert named <= made
    for kind, name in (("Deployment", "line1-worker"), ("StatefulSet", "redis")):
        pod = of_kind(kind, name)["spec"]["template"]["spec"]
        claims = of_kind(kind, name)["spec"].get("volumeClaimTemplates", [])
        volumes = {row["name"] for row in pod["volumes"]} | {row["metadata"]["name"] for row in claims}
        assert {row["name"] for row in pod["containers"][0]["volumeMounts"]} == volumes
    applied = {DEPLOY / name for name in KUSTOMIZATION["resources"]}
    assert applied == {path for path in MANIFESTS if "example" not in path.name}
    assert all((DEPLOY / name).exists() for row in KUSTOMIZATION["configMapGenerator"] for name in row["files"])


def test_kustomize_builds_it() -> None:
    """`kubectl kustomize deploy`: every resource in the namespace, redis.conf inside, the image renamed."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed on this machine; what it names was compared")
    done = run("kubectl", "kustomize", DEPLOY)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len([1 for name, _ in documents() if "example" not in name]) + 1
    assert all(d["metadata"].get("namespace") == "aoi" for d in built if d["kind"] != "Namespace")
    (conf,) = (d for d in built if d["metadata"]["name"].startswith("aoi-redis-conf-"))
    assert conf["data"]["redis.conf"] == (DEPLOY / "redis/redis.conf").read_text()
    assert "image: registry.example/inline-aoi:" in done.stdout


@pytest.mark.parametrize(("kind", "name"), [("Deployment", "line1-worker"), ("StatefulSet", "redis")])
def test_pods_are_restricted(kind: str, name: str) -> None:
    """What the namespace's pod security standard asks for, a read-only root, and limits."""
    pod = of_kind(kind, name)["spec"]["template"]["spec"]
    (found,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert found["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert found["securityContext"]["readOnlyRootFilesystem"]
    assert not found["securityContext"]["allowPrivilegeEscalation"]
    assert found["resources"]["limits"]["memory"]
    assert {"readinessProbe", "livenessProbe"} <= found.keys()
    assert pod["terminationGracePeriodSeconds"] >= 60


# -------------------------------------------------------------- the probes and commands, run


@pytest.fixture(params=["compose", "kubernetes"])
def redis_run(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Redis started with the command of the file; how it is asked whether it is well, and the viewer's settings."""
    run(DEPLOY / "redis/make-passwords", tmp_path / "secrets", "redis://redis:6379/0")
    if request.param == "compose":
        words, ask = SERVICES["redis"]["command"], SERVICES["redis"]["healthcheck"]["test"][1]
    else:
        found = container("StatefulSet", "redis")
        words, ask = found["command"] + found["args"], found["readinessProbe"]["exec"]["command"][2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    paths = {"/etc/aoi/redis/redis.conf": f"{DEPLOY}/redis/redis.conf", "6379": str(port)}
    paths |= dict.fromkeys(("/run/secrets/users.acl", "/etc/aoi/users/users.acl"), f"{tmp_path}/secrets/users.acl")
    binary = find_server()[0]
    assert words[0] == "redis-server"
    command = [str(binary), *(paths.get(word, word) for word in words[1:]), "--unixsocket", str(tmp_path / "sock")]
    (tmp_path / "redis-cli").write_text(f'#!/bin/sh\nexec {binary.with_name("redis-cli")} -p {port} "$@"\n')
    (tmp_path / "redis-cli").chmod(0o755)
    viewer = env_file((tmp_path / "secrets/viewer.env").read_text())
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    yield ask, {**os.environ, **viewer, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    server.terminate()
    server.wait(30)


def test_redis_is_found_well_or_not(redis_run: tuple[str, dict[str, str]]) -> None:
    """Ready with the viewer's password, not without; alive either way."""
    ask, environment = redis_run
    if not find_server()[0].with_name("redis-cli").exists():
        pytest.skip("no redis-cli beside this machine's Redis server")
    wait_until(lambda: run("sh", "-c", ask, env=environment).returncode == 0)
    assert run("sh", "-c", ask, env={**environment, "REDISCLI_AUTH": "wrong"}).returncode != 0
    alive = container("StatefulSet", "redis")["livenessProbe"]["exec"]["command"]
    assert run(*alive, env=environment).returncode == 0
    assert run(*alive, env={**environment, "REDISCLI_AUTH": "wrong"}).returncode == 0
    cli = Path(environment["PATH"].split(":")[0], "redis-cli")
    cli.write_text(re.sub(r"-p \d+", "-p 1", cli.read_text()))
    assert run(*alive, env=environment).returncode != 0


@pytest.mark.parametrize(
    ("stepped_ago", "heard_ago", "ready", "alive"),
    [(0, 0, True, True), (0, STILL_S + 9, False, True), (STILL_S + 9, 0, False, False)],
    ids=["at work", "Redis away", "hung"],
)
def test_worker_is_found_ready_and_alive(stepped_ago: float, heard_ago: float, ready: bool, alive: bool) -> None:
    """Both probes against a real server: a Redis that is away takes a worker out of service, and kills none."""
    worker = SimpleNamespace()
    with MetricsServer("127.0.0.1", 0) as server:
        now = time.monotonic()
        worker.stepped_at, worker.heard_at = now - stepped_ago, now - heard_ago
        server.trouble = lambda: worker_trouble(cast(Any, worker))
        _, *check, script = container("Deployment", "line1-worker")["livenessProbe"]["exec"]["command"]
        assert (run(sys.executable, *check, script.replace("9108", str(server.port))).returncode == 0) is alive
        for name in ("worker", "source"):
            kind, _, *check, script = SERVICES[name]["healthcheck"]["test"]
            assert kind == "CMD"
            assert (run(sys.executable, *check, script.replace("9108", str(server.port))).returncode == 0) is ready
    assert container("Deployment", "line1-worker")["readinessProbe"]["httpGet"] == {
        "path": "/healthz",
        "port": "metrics",
    }
