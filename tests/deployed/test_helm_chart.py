"""The Helm chart, rendered by Helm's own engine: what its objects are, may do and may reach; no cluster is needed."""

import copy
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # its stubs are a package of their own
from jsonschema import Draft7Validator
from paths import ROOT

from consilium.common import __version__

CHART = ROOT / "docker" / "helm" / "consilium"
MOST_VALUES = 60
KUBERNETES = ("1.25.0", "1.37.0")
"""Releases whose schemas the objects are checked with."""
SERVER = {"server": {"enabled": True, "hosts": ["study.example.org"]}, "metrics": {"namespace": "monitoring"}}
SITE = {
    "site": {
        "enabled": True,
        "secret": "berlin",
        "server": {"cidr": "203.0.113.7/32"},
        "data": {"claim": "images"},
        "gpus": 1,
        "nodeSelector": {"gpu": "yes"},
    },
    "imagePullSecrets": ["registry"],
}
BOTH: dict[str, dict[str, Any]] = {"server": SERVER, "site": SITE}

rendering = pytest.mark.skipif(
    find_spec("helm_python") is None, reason="Helm's engine (helm-python-sdk) has no wheel for this machine"
)


def changed(values: Mapping[str, Any], *path: str, to: object) -> dict[str, Any]:
    """Return values of which one is another."""
    copied = copy.deepcopy(dict(values))
    place = copied
    for name in path[:-1]:
        place = place.setdefault(name, {})
    place[path[-1]] = to
    return copied


@cache
def _rendered(text: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "tests" / "helm_render.py")]
    asked = json.dumps({"chart": str(CHART), "values": json.loads(text)})
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def rendered(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Helm makes of the chart with these values."""
    return _rendered(json.dumps(values))


def objects(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the chart's objects by their kinds."""
    found = rendered(values)
    assert "" == found["error"]
    texts = [text for name, text in found["manifests"].items() if name.endswith(".yaml")]
    return {one["kind"]: one for text in texts for one in yaml.safe_load_all(text) if one}


def pod_of(values: Mapping[str, Any]) -> Any:
    """Return the pod that the chart starts."""
    return objects(values)["StatefulSet"]["spec"]["template"]["spec"]


def leaves(values: object) -> Iterator[object]:
    """Yield every value that a person may set."""
    if isinstance(values, dict) and values:
        for one in values.values():
            yield from leaves(one)
    else:
        yield values


def default_values() -> dict[str, Any]:
    """Return the chart's own values."""
    found: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())
    return found


def dockerfile(part: str) -> str:
    """Return the file that the part's image is built by, with continued lines joined."""
    name = {"server": "server", "site": "client"}[part]
    return (ROOT / "docker" / f"{name}.Dockerfile").read_text().replace("\\\n", " ")


# --- values ------------------------------------------------------------------------------------------


def test_values_are_few_and_hold_no_secret() -> None:
    """Secrets are named, never given; the chart is of this release."""
    values = list(leaves(default_values()))
    assert len(values) <= MOST_VALUES
    assert __version__ == yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    assert default_values()["site"]["secret"] == ""


def schema_errors(values: Mapping[str, Any]) -> list[str]:
    """Return what the chart's schema has against values, with the chart's own for those not given."""

    def merged(base: Any, over: Any) -> Any:
        if not (isinstance(base, dict) and isinstance(over, dict)):
            return over
        return {**base, **{name: merged(base.get(name), one) for name, one in over.items()}}

    schema = json.loads((CHART / "values.schema.json").read_text())
    Draft7Validator.check_schema(schema)
    return [error.message for error in Draft7Validator(schema).iter_errors(merged(default_values(), values))]


WRONG = {
    "an unknown value": changed(SITE, "site", "sercet", to="x"),
    "no secret": changed(SITE, "site", "secret", to=""),
    "no data": changed(SITE, "site", "data", to={"claim": ""}),
    "a network in place of one host": changed(SITE, "site", "server", to={"cidr": "203.0.113.0/24"}),
    "a name in place of an address": changed(SITE, "site", "server", to={"cidr": "study.example.org"}),
    "no server": changed(SITE, "site", "server", to={"cidr": ""}),
    "two servers": changed(SITE, "site", "server", to={"cidr": "203.0.113.7/32", "namespace": "study"}),
    "no host": changed(SERVER, "server", "hosts", to=[]),
    "a port as text": changed(SERVER, "server", "port", to="9092"),
    "no limit of memory": changed(SITE, "site", "resources", to={"requests": {}, "limits": {"memory": None}}),
    "the user root": changed(SERVER, "user", to=0),
    "a password": changed(SERVER, "server", "password", to="secret"),
}


@pytest.mark.parametrize("values", [{}, SERVER, SITE, changed(SITE, "site", "server", to={"cidr": "2001:db8::7/128"})])
def test_schema_takes_values_that_can_be(values: dict[str, Any]) -> None:
    """The defaults too."""
    assert [] == schema_errors(values)


@pytest.mark.parametrize("what", WRONG)
def test_schema_refuses_wrong_values(what: str) -> None:
    """Before anything is installed."""
    assert schema_errors(WRONG[what]), what


@rendering
def test_helm_itself_refuses_wrong_values() -> None:
    """By the same schema; one of them stands for all."""
    found = rendered(WRONG["a network in place of one host"])
    assert "cidr" in found["error"]
    assert {} == found["manifests"]


# --- objects -----------------------------------------------------------------------------------------


@rendering
@pytest.mark.parametrize("part", BOTH)
@pytest.mark.parametrize("kubernetes", KUBERNETES)
def test_objects_are_valid(part: str, kubernetes: str) -> None:
    """By the strict schemas of the oldest and the newest release; Helm has nothing against the chart but its icon."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    found = objects(BOTH[part])
    for one in found.values():
        kubernetes_validate.validate(one, kubernetes, strict=True)
    kinds = {"StatefulSet", "NetworkPolicy"} | ({"Service"} if part == "server" else set())
    assert kinds == set(found)  # above all, no Secret
    findings = rendered(BOTH[part])["findings"]
    assert ([], ["icon is recommended"]) == (findings["errors"], [one["error"] for one in findings["messages"]])


@rendering
def test_nothing_is_installed_unless_it_is_asked_for() -> None:
    """Neither part is on by itself."""
    assert {} == objects({})


@rendering
@pytest.mark.parametrize("part", BOTH)
def test_pods_have_no_rights(part: str) -> None:
    """As the containers of docker-compose.yml: no root, no capability, no writing but to volumes, no token."""
    pod = pod_of(BOTH[part])
    user = int(re.findall(r"^USER (\d+):\d+$", dockerfile(part), re.MULTILINE)[0])
    context = pod["securityContext"]
    assert context["runAsNonRoot"] is True
    assert user == context["runAsUser"] == context["runAsGroup"] == context["fsGroup"]
    assert pod["automountServiceAccountToken"] is False
    assert "RuntimeDefault" == context["seccompProfile"]["type"]
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] is True
        assert own["allowPrivilegeEscalation"] is False
        assert ["ALL"] == own["capabilities"]["drop"]
        assert "memory" in container["resources"]["limits"]
    assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC"}
    assert not [one for one in pod["volumes"] if "hostPath" in one]


@rendering
@pytest.mark.parametrize("part", BOTH)
def test_containers_run_and_are_probed_as_their_images_say(part: str) -> None:
    """The command begins with the image's own, and the probes are its health command; folders are its volumes."""
    pod = pod_of(BOTH[part])
    container = pod["containers"][0]
    text = dockerfile(part)
    command = json.loads(re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)[0])
    assert command == container["args"][: len(command)]
    health = json.loads(re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", text, re.MULTILINE)[0])
    assert health == container["startupProbe"]["exec"]["command"]
    probes = [container[name]["exec"]["command"][-1] for name in ("readinessProbe", "livenessProbe")]
    assert [health[-1].replace("/readyz", "/healthz")] == probes[1:]
    assert health[-1].replace("/healthz", "/readyz") == probes[0]
    port = {"server": "9094", "site": "9095"}[part]
    assert [{"name": "METRICS_ADDRESS", "value": f"127.0.0.1:{port}"}] == container["env"]
    assert f"0.0.0.0:{port}" == container["args"][container["args"].index("--metrics") + 1]
    mounts = {one["mountPath"] for one in container["volumeMounts"]}
    assert {"server": {"/server", "/runs", "/tmp"}, "site": {"/site", "/data", "/tmp"}}[part] == mounts


@rendering
def test_site_reaches_one_host_and_the_names_of_the_cluster() -> None:
    """And nobody reaches it, but Prometheus where that is named."""
    policy = objects(SITE)["NetworkPolicy"]["spec"]
    assert ["Ingress", "Egress"] == policy["policyTypes"]
    assert [] == policy["ingress"]
    to_server, to_names = policy["egress"]
    assert {
        "to": [{"ipBlock": {"cidr": "203.0.113.7/32"}}],
        "ports": [{"protocol": "TCP", "port": 9092}],
    } == to_server
    assert {53} == {one["port"] for one in to_names["ports"]}
    (names,) = to_names["to"]
    assert {"k8s-app": "kube-dns"} == names["podSelector"]["matchLabels"]
    assert "kube-system" == names["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]

    inside = changed(SITE, "site", "server", to={"namespace": "study"})
    (server,) = objects(inside)["NetworkPolicy"]["spec"]["egress"][0]["to"]
    selected = objects(SERVER)["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    assert server["podSelector"]["matchLabels"].items() <= selected.items()
    assert "study" == server["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]


@rendering
def test_server_is_reached_on_its_port_and_by_prometheus_alone() -> None:
    """It connects to nobody."""
    policy = objects(SERVER)["NetworkPolicy"]["spec"]
    assert [] == policy["egress"]
    sites, scrapes = policy["ingress"]
    assert {"ports": [{"protocol": "TCP", "port": 9092}]} == sites
    assert [9094] == [one["port"] for one in scrapes["ports"]]
    (prometheus,) = scrapes["from"]
    assert {"kubernetes.io/metadata.name": "monitoring"} == prometheus["namespaceSelector"]["matchLabels"]
    alone = changed(changed(SERVER, "metrics", "namespace", to=""), "server", "from", to=["198.51.100.0/24"])
    (sites,) = objects(alone)["NetworkPolicy"]["spec"]["ingress"]
    assert [{"ipBlock": {"cidr": "198.51.100.0/24"}}] == sites["from"]
    service = objects(SERVER)["Service"]["spec"]
    assert [9092] == [one["port"] for one in service["ports"]]


@rendering
@pytest.mark.parametrize("part", BOTH)
def test_policies_and_services_select_the_pods(part: str) -> None:
    """Labels that do not meet would leave a pod without its policy."""
    found = objects(BOTH[part])
    labels = found["StatefulSet"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["StatefulSet"]["spec"]["selector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *([found["Service"]["spec"]["selector"]] if part == "server" else []),
    ):
        assert selector.items() <= labels.items()
        assert selector["app.kubernetes.io/component"] == part


@rendering
def test_site_gets_its_gpu_its_node_and_its_registry() -> None:
    """As the values say."""
    pod = pod_of(SITE)
    assert 1 == pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"]
    assert {"gpu": "yes"} == pod["nodeSelector"]
    assert [{"name": "registry"}] == pod["imagePullSecrets"]
    volumes = {one["name"]: one for one in pod["volumes"]}
    assert {"claimName": "images", "readOnly": True} == volumes["data"]["persistentVolumeClaim"]
    assert "berlin" == volumes["secret"]["secret"]["secretName"]


@rendering
def test_secret_is_copied_when_it_changes_and_a_renewed_certificate_stays(tmp_path: Path) -> None:
    """The command of the container that comes first, run by a real shell."""
    secret, folder = tmp_path / "secret of berlin", tmp_path / "site"
    secret.mkdir()
    folder.mkdir()
    command = pod_of(SITE)["initContainers"][0]["command"]
    assert ["/secret", "/site"] == command[-2:]

    def start() -> None:
        subprocess.run([*command[:-2], str(secret), str(folder)], check=True, timeout=20)

    (secret / "site.pem").write_text("first")
    (secret / "site.key").write_text("key")
    start()
    assert ("first", "key") == ((folder / "site.pem").read_text(), (folder / "site.key").read_text())
    assert 0o600 == (folder / "site.key").stat().st_mode & 0o777
    (folder / "site.pem").write_text("renewed by itself")
    start()
    assert "renewed by itself" == (folder / "site.pem").read_text()
    (secret / "site.pem").write_text("second")
    start()
    assert "second" == (folder / "site.pem").read_text()
    assert {"site.pem", "site.key", ".secret"} == {one.name for one in folder.iterdir()}
