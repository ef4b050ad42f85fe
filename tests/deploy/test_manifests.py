"""Dockerfile, compose file and Kubernetes manifests, against the schemas, the settings and each other."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from memoryos import settings
from memoryos.addresses import split_address
from memoryos_server.stores.qdrant_schema import LEAST_VERSION
from scripts.generate import ROOT
from tests.deploy_support import DEPLOY, manifests, matches, of_kind

KUBERNETES = "1.30"
KNOWN = {item.env: item for item in settings.known({})}
URLS = {"MEMORYOS_REDIS__URL"}
"""Secret because of the password that may be in it; one without may stand in the open."""
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CLOSING_SECONDS = 15
"""What a server may need after its grace: `finally` blocks (5 s) and what the pipeline writes (10 s)."""


def check_names(environment: dict[str, str]) -> None:
    """Every name is a setting, every value can be read, and no secret stands in the open."""
    plain = {}
    for name, value in environment.items():
        setting = name.removesuffix("_FILE")
        assert setting in KNOWN, f"{name} is no setting"
        assert isinstance(value, str), f"{name} must be quoted"
        if name in URLS:
            assert "@" not in value, f"{name} names a password"
            continue
        secret = KNOWN[setting].secret
        assert secret == name.endswith("_FILE"), f"{name}: secrets, and nothing else, come from files"
        if not secret:
            plain[name] = value
    assert settings.load(plain).warnings == ()


def test_manifests_when_checked_then_kubernetes_own_schemas_accept_them() -> None:
    seen = set()
    for name, found in manifests():
        seen.add(found["kind"])
        if found["kind"] != "Kustomization":
            kubernetes_validate.validate(found, KUBERNETES, strict=True)
            assert found["metadata"]["name"], name
    assert {"Deployment", "Service", "ConfigMap", "Secret", "PodDisruptionBudget", "NetworkPolicy"} <= seen
    assert "HorizontalPodAutoscaler" in seen


def test_schemas_when_a_field_is_misspelt_then_they_see_it() -> None:
    broken = of_kind("Deployment")["memoryos-server"]
    broken["spec"]["template"]["spec"]["enableServiceLink"] = False
    with pytest.raises(Exception, match="enableServiceLink"):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_kustomization_when_read_then_every_file_is_in_it_but_the_example() -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes" / "kustomization.yaml").read_text())
    there = {path.name for path in (DEPLOY / "kubernetes").glob("*.yaml")}
    assert there - set(kustomization["resources"]) == {"kustomization.yaml", "secret.example.yaml"}


def test_config_maps_when_read_then_every_name_is_a_setting() -> None:
    for found in of_kind("ConfigMap").values():
        check_names(found["data"])


def test_secret_files_when_named_then_the_pod_has_them() -> None:
    keys = set(of_kind("Secret")["memoryos"]["stringData"])
    for name, deployment in of_kind("Deployment").items():
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = [m for m in container["volumeMounts"] if m["name"] == "secrets"]
        (volume,) = [v for v in pod["volumes"] if v["name"] == "secrets"]
        given = {item["path"] for item in volume["secret"].get("items", [])} or keys
        assert {item["key"] for item in volume["secret"].get("items", [])} <= keys
        for path in (v for k, v in of_kind("ConfigMap")[name]["data"].items() if k.endswith("_FILE")):
            assert path in {f"{mount['mountPath']}/{key}" for key in given}


def test_selectors_when_compared_then_they_match_the_pods() -> None:
    pods = {name: d["spec"]["template"]["metadata"]["labels"] for name, d in of_kind("Deployment").items()}
    assert pods.keys() == {"memoryos-server", "memoryos-bridge"}
    for name, labels in pods.items():
        assert matches(of_kind("Deployment")[name]["spec"]["selector"]["matchLabels"], labels)
        assert matches(of_kind("Service")[name]["spec"]["selector"], labels)
        assert matches(of_kind("PodDisruptionBudget")[name]["spec"]["selector"]["matchLabels"], labels)
        assert matches(of_kind("NetworkPolicy")[name]["spec"]["podSelector"]["matchLabels"], labels)
        assert of_kind("HorizontalPodAutoscaler")[name]["spec"]["scaleTargetRef"]["name"] == name
        (spread,) = of_kind("Deployment")[name]["spec"]["template"]["spec"]["topologySpreadConstraints"]
        assert matches(spread["labelSelector"]["matchLabels"], labels)


def test_ports_when_compared_then_settings_containers_services_probes_and_policies_agree() -> None:
    listens = {
        "memoryos-server": {"grpc": "MEMORYOS_SERVER__LISTEN", "metrics": "MEMORYOS_SERVER__METRICS_LISTEN"},
        "memoryos-bridge": {"http": "MEMORYOS_BRIDGE__LISTEN"},
    }
    for name, names in listens.items():
        data = of_kind("ConfigMap")[name]["data"]
        (container,) = of_kind("Deployment")[name]["spec"]["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {port: split_address(data[setting], setting)[1] for port, setting in names.items()}
        for port in of_kind("Service")[name]["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            how = container[probe]
            number = how["grpc"]["port"] if "grpc" in how else ports[how["httpGet"]["port"]]
            assert number == ports["grpc" if "grpc" in how else "http"]
        for rule in of_kind("NetworkPolicy")[name]["spec"]["ingress"]:
            assert all(port["port"] in ports for port in rule["ports"])
        scraped = of_kind("Deployment")[name]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"]
        assert int(scraped) == ports.get("metrics", ports.get("http"))
    host, port = split_address(of_kind("ConfigMap")["memoryos-bridge"]["data"]["MEMORYOS_BRIDGE__SERVER"], "server")
    service = of_kind("Service")[host]["spec"]
    assert service["clusterIP"] == "None"
    assert port in {p["port"] for p in service["ports"]}


def test_probes_when_named_then_the_paths_and_services_are_public_ones() -> None:
    from memoryos import schema

    methods = schema.load()
    public = {route.template for method in methods for route in method.routes if method.permission == "public"}
    services = {method.service for method in methods}
    for deployment in of_kind("Deployment").values():
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            if http := container[probe].get("httpGet"):
                assert http["path"] in public
            elif service := container[probe]["grpc"].get("service"):
                assert service in services


def test_stops_when_added_up_then_they_fit_into_the_termination_grace() -> None:
    def seconds(data: dict[str, str], name: str) -> float:
        return float(data.get(name, KNOWN[name].default))

    server = of_kind("ConfigMap")["memoryos-server"]["data"]
    needed = seconds(server, "MEMORYOS_SERVER__DRAIN_SECONDS") + seconds(server, "MEMORYOS_SERVER__GRACE_SECONDS")
    pod = of_kind("Deployment")["memoryos-server"]["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] >= needed + CLOSING_SECONDS
    probe = pod["containers"][0]["readinessProbe"]
    assert seconds(server, "MEMORYOS_SERVER__DRAIN_SECONDS") > probe["periodSeconds"] * probe["failureThreshold"]

    bridge = of_kind("ConfigMap")["memoryos-bridge"]["data"]
    pod = of_kind("Deployment")["memoryos-bridge"]["spec"]["template"]["spec"]
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + seconds(bridge, "MEMORYOS_BRIDGE__GRACE_SECONDS") + 5
    probe = pod["containers"][0]["readinessProbe"]
    assert before > probe["periodSeconds"] * probe["failureThreshold"]


def test_pods_when_read_then_they_are_confined() -> None:
    for deployment in of_kind("Deployment").values():
        pod = deployment["spec"]["template"]["spec"]
        assert pod["enableServiceLinks"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert {"requests", "limits"} <= container["resources"].keys()


def dockerfile() -> list[str]:
    """The instructions, continued lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def test_dockerfile_when_read_then_it_copies_what_is_there_and_runs_as_the_pods_user() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in dockerfile():
        if line.startswith("COPY") and "--from" not in line:
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert f"!{source}" in ignored, f"{source} is not sent to the build"
        if line.startswith("RUN") and "pip install" in line:
            assert "--no-deps" in line
            assert "--require-hashes" in line or line.endswith("--no-build-isolation .")
    assert "USER 10001:10001" in dockerfile()
    user = of_kind("Deployment")["memoryos-server"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert user == 10001
    (env,) = [line for line in dockerfile() if line.startswith("ENV PATH")]
    pairs = dict(pair.split("=", 1) for pair in shlex.split(env)[1:])
    check_names({name: value for name, value in pairs.items() if name.startswith("MEMORYOS_")})
    (exposed,) = [line for line in dockerfile() if line.startswith("EXPOSE")]
    defaults = [KNOWN[f"MEMORYOS_{n}"].default for n in ("BRIDGE__LISTEN", "SERVER__LISTEN", "SERVER__METRICS_LISTEN")]
    assert exposed.split()[1:] == [str(split_address(default, "")[1]) for default in defaults]


def test_dockerfile_when_its_model_is_built_then_a_server_finds_it_where_the_image_says(tmp_path: Path) -> None:
    (build,) = [line for line in dockerfile() if line.startswith("RUN") and "prepare" in line]
    command = shlex.split(build.removeprefix("RUN "))
    assert command[0] == "/opt/memoryos/bin/python"
    (env,) = [line for line in dockerfile() if line.startswith("ENV PATH")]
    assert "MEMORYOS_EMBEDDING__CACHE_DIR=/opt/models" in env
    models = tmp_path / "models"
    code = command[2].replace("/opt/models", str(models))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100, env={**os.environ, "HOME": str(tmp_path)})
    models.chmod(0o500)
    look = (
        "import asyncio, pathlib\n"
        "from memoryos.settings import EmbeddingSettings\n"
        "from memoryos_server.tools.embed.opening import open_embedder\n"
        "async def main():\n"
        f"    async with open_embedder(EmbeddingSettings(), pathlib.Path({str(models)!r}), progress=print) as e:\n"
        "        print(list(e.names))\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "['minilm']"


def test_compose_when_read_then_names_secrets_volumes_and_images_are_sound() -> None:
    profiles = {name: set(service["profiles"]) for name, service in COMPOSE["services"].items()}
    assert {"embedded", "live"} == set().union(*profiles.values())
    for name, service in COMPOSE["services"].items():
        environment: dict[str, Any] = service.get("environment", {})
        check_names(environment)
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys()
        for value in (v for k, v in environment.items() if k.endswith("_FILE")):
            assert value.removeprefix("/run/secrets/") in service["secrets"], f"{name}: {value}"
        for mount in service.get("volumes", ()):
            assert mount.partition(":")[0] in COMPOSE["volumes"]
        for other, how in service.get("depends_on", {}).items():
            assert "healthcheck" in COMPOSE["services"][other], other
            assert how == {"condition": "service_healthy"}
            assert profiles[name] <= profiles[other]
        tag = service["image"].rpartition(":")[2]
        assert re.match(r"v?\d+\.\d+", tag), f"{name}: an image is pinned by its tag"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))


def test_compose_when_it_stops_then_the_grace_is_long_enough() -> None:
    for name, grace, margin in (
        ("server", "MEMORYOS_SERVER__GRACE_SECONDS", CLOSING_SECONDS),
        ("bridge", "MEMORYOS_BRIDGE__GRACE_SECONDS", 5),
    ):
        service = COMPOSE["services"][name]
        environment = service["environment"]
        needed = float(environment[grace]) + float(environment.get("MEMORYOS_SERVER__DRAIN_SECONDS", 0)) + margin
        assert int(service["stop_grace_period"].removesuffix("s")) >= needed


def test_compose_when_settings_are_loaded_then_server_and_bridge_find_each_other() -> None:
    server, bridge = (COMPOSE["services"][name]["environment"] for name in ("server", "bridge"))
    host, port = split_address(bridge["MEMORYOS_BRIDGE__SERVER"], "bridge.server")
    assert host in COMPOSE["services"]
    assert port == split_address(server["MEMORYOS_SERVER__LISTEN"], "server.listen")[1]
    assert json.dumps(COMPOSE)  # no object that only YAML knows


def test_compose_when_it_names_qdrant_then_it_is_a_version_that_the_server_takes() -> None:
    version = COMPOSE["services"]["qdrant"]["image"].rpartition(":v")[2]
    assert tuple(int(part) for part in version.split(".")[:2]) >= LEAST_VERSION
