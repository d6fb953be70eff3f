"""The manifest for Kubernetes against the schemas of Kubernetes, the command, the routes and the image."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml
from serving import SOURCE, wait_for
from test_deployment import ROOT, instructions, parsed, serve_command

from memspan.serve.api.health import PATHS
from memspan.serve.keys import KeyFile
from memspan.serve.settings import ServeSettings

MANIFEST = ROOT / "examples" / "cluster" / "kubernetes.yaml"
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8")))
OWN_MOUNTS = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
KINDS = {"StatefulSet": "writer", "Deployment": "reader"}


def workload(kind: str) -> dict[str, Any]:
    (found,) = (one for one in OBJECTS if one["kind"] == kind)
    return found["spec"]


def pod(kind: str) -> dict[str, Any]:
    return workload(kind)["template"]["spec"]


def container(kind: str) -> dict[str, Any]:
    (found,) = pod(kind)["containers"]
    return found


def settings(kind: str) -> ServeSettings:
    """What the arguments ask for, read by the command itself."""
    assert container(kind)["command"] == ["memspan"]
    name, *arguments = container(kind)["args"]
    assert name == "serve" and all(isinstance(one, str) for one in arguments)
    return parsed(arguments)


def mounts(kind: str) -> dict[str, str]:
    """Names of volumes by their paths."""
    return {one["mountPath"]: one["name"] for one in container(kind)["volumeMounts"]}


def test_kubernetes_knows_every_field() -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    for one in OBJECTS:
        schemas.validate(one, "1.34", strict=True)


def test_there_is_one_writer_and_services_of_both() -> None:
    assert [one["kind"] for one in OBJECTS] == ["ConfigMap", "Service", "Service", *KINDS]
    assert workload("StatefulSet")["replicas"] == 1 and workload("Deployment")["replicas"] >= 2
    for kind, role in KINDS.items():
        labels = workload(kind)["template"]["metadata"]["labels"]
        assert labels["role"] == role and workload(kind)["selector"]["matchLabels"] == labels
        (service,) = (one for one in OBJECTS if one["kind"] == "Service" and one["spec"]["selector"] == labels)
        (port,) = service["spec"]["ports"]
        (open_port,) = container(kind)["ports"]
        assert port["targetPort"] == open_port["name"] and open_port["containerPort"] == settings(kind).port
    assert workload("StatefulSet")["serviceName"] in {one["metadata"]["name"] for one in OBJECTS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_probes_ask_keyless_routes_of_the_port_that_is_served(kind: str) -> None:
    probes = {name: container(kind)[f"{name}Probe"]["httpGet"] for name in ("startup", "liveness", "readiness")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startup": "/health",
        "liveness": "/health",
        "readiness": "/ready",
    }
    for probe in probes.values():
        assert probe["path"] in PATHS and probe["port"] == container(kind)["ports"][0]["name"]
    startup = container(kind)["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 120, "a model may take as long to load"


@pytest.mark.parametrize("kind", KINDS)
def test_a_pod_is_confined_and_may_finish_its_answers(kind: str) -> None:
    assert not settings(kind).is_local
    inside, outside = container(kind)["securityContext"], pod(kind)["securityContext"]
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert outside["runAsNonRoot"] and outside["seccompProfile"] == {"type": "RuntimeDefault"}
    assert f"--uid {outside['runAsUser']} memspan" in instructions("RUN")[-1], "the user of the image"
    assert not pod(kind)["automountServiceAccountToken"]
    pause = container(kind)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod(kind)["terminationGracePeriodSeconds"] > settings(kind).grace + pause + 10
    resources = container(kind)["resources"]
    assert {"cpu", "memory"} <= resources["requests"].keys() and "memory" in resources["limits"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_on_volumes_and_the_keys_are_a_secret(kind: str) -> None:
    variables = {one["name"]: one["value"] for one in container(kind)["env"]}
    known = {"MEMSPAN_CACHE", "HOME", *(parameter.envvar for parameter in serve_command().params)}
    assert variables.keys() <= known
    there = mounts(kind)
    assert there[str(Path(variables["MEMSPAN_KEYS"]).parent)] == "keys" and "/tmp" in there
    assert variables["MEMSPAN_CACHE"] in there and variables["HOME"] in there
    volumes = {one["name"]: one for one in pod(kind)["volumes"]}
    claimed = {one["metadata"]["name"] for one in workload(kind).get("volumeClaimTemplates", [])}
    assert set(there.values()) == volumes.keys() | claimed
    text = MANIFEST.read_text(encoding="utf-8")
    assert f"generic {volumes['keys']['secret']['secretName']} --from-file keys.json" in text
    assert Path(variables["MEMSPAN_KEYS"]).name == "keys.json"


def test_readers_read_where_the_writer_publishes_and_share_no_volume_with_it() -> None:
    (config,) = (one for one in OBJECTS if one["kind"] == "ConfigMap")
    (name,) = config["data"]
    assert settings("StatefulSet").publish == f"$({name})" and settings("Deployment").publish is None
    assert container("Deployment")["args"][1] == f"notes=$({name})"
    for kind in KINDS:
        assert {"configMapRef": {"name": config["metadata"]["name"]}} in container(kind)["envFrom"]
    bank = container("StatefulSet")["args"][1].removeprefix("notes=")
    (claim,) = workload("StatefulSet")["volumeClaimTemplates"]
    assert mounts("StatefulSet")[str(Path(bank).parent)] == claim["metadata"]["name"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"], "a bank's locks need a disk of one machine"
    assert all("persistentVolumeClaim" not in one for one in pod("Deployment")["volumes"])


@pytest.mark.slow
def test_writer_and_readers_run_in_a_root_that_cannot_be_written(endless_checkpoint: Path, tmp_path: Path) -> None:
    """The manifest's arguments, with its volumes as the only folders that can be written; a reader follows."""
    enclosed = [*OWN_MOUNTS, "mount -o remount,bind,ro /"]
    if shutil.which("unshare") is None or subprocess.run(enclosed, check=False).returncode:
        pytest.skip("no process may have mounts of its own here")
    keys = KeyFile(tmp_path / "keys" / "keys.json")
    secret = keys.add("me", ("write",), ())[1]
    headers = {"Authorization": f"Bearer {secret}"}
    addresses: dict[str, str] = {}
    servers: list[subprocess.Popen[str]] = []
    try:
        for kind in KINDS:
            servers.append(_started(kind, endless_checkpoint, tmp_path))
            assert servers[-1].stderr is not None
            line = next((line for line in servers[-1].stderr if "serving on" in line), "")
            assert line, "the server did not start"
            addresses[kind] = line.split("serving on ")[1].split()[0].replace("0.0.0.0", "127.0.0.1")
        with httpx.Client(headers=headers, timeout=60) as http:
            assert all(http.get(f"{one}/ready").status_code == 200 for one in addresses.values())
            body = {"id": "heron", "text": "The heron lives in Oslo."}
            http.post(f"{addresses['StatefulSet']}/v1/memories", json=body).raise_for_status()
            wait_for(lambda: http.get(f"{addresses['Deployment']}/v1/memories/heron").status_code == 200)
            assert http.delete(f"{addresses['Deployment']}/v1/memories/heron").status_code == 403
    finally:
        for server in servers:
            server.kill()
            server.communicate()


def _started(kind: str, model: Path, folder: Path) -> subprocess.Popen[str]:
    """A container of the manifest, as far as there can be one without an image: its own view of the volumes."""
    url = folder / "published"
    paths = {path: folder / f"{kind}-{name}" for path, name in mounts(kind).items() if name != "keys"}
    for path in [url, *paths.values()]:
        path.mkdir(exist_ok=True)
    bank = paths.get("/data", folder)
    arguments = [
        one.replace("$(BANK_URL)", str(url)).replace("/data/", f"{bank}/").replace("8000", "0")
        for one in container(kind)["args"]
    ]
    writable = " && ".join(f"mount --bind {path} {path}" for path in [url, *paths.values()])
    script = f'{writable} && mount -o remount,bind,ro / && exec "$@"'
    own = {one["name"]: one["value"] for one in container(kind)["env"]}
    own |= {"MEMSPAN_CACHE": str(paths["/cache"]), "HOME": str(paths["/cache"]), "TMPDIR": str(paths["/tmp"])}
    own |= {"MEMSPAN_KEYS": str(folder / "keys" / "keys.json"), "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    own |= {"MEMSPAN_MODEL": str(model), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "200"}
    command = [*OWN_MOUNTS, script, "sh", sys.executable, "-m", "memspan"]
    return subprocess.Popen([*command, *arguments], env=os.environ | own, stderr=subprocess.PIPE, text=True)
