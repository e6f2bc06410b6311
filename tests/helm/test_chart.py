"""The chart as it renders: valid for Kubernetes and for the program, as the golden files have it, and refusing what is wrong."""

import difflib
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess

import jsonschema
import kubernetes_validate
import pytest
import yaml
from conftest import CHART, HERE, MONITORED, ROOT, merged, render
from helm_python import chart as sdk
from helm_python.errors import HelmError

# The oldest with native sidecars, and the newest that the schemas know.
VERSIONS = ("1.29", kubernetes_validate.latest_version())
CASES = sorted(path.stem for path in (HERE / "values").glob("*.yaml"))
# Kinds that Kubernetes itself does not know, with the parts that this chart uses written down in schemas/.
FOREIGN = {path.stem: json.loads(path.read_text()) for path in (HERE / "schemas").glob("*.json")}

# Each switch's other positions; what is not listed stays as it is by default.
SWITCHES = [
    [{}, {"replicas": 1}, {"replicas": 2}, {"replicas": 7}],
    [{}, {"persistence": {"enabled": False}}, {"persistence": {"storageClassName": "fast"}}],
    [{}, {"identity": {"type": "certManager", "certManager": {"issuerName": "ca"}}}, {"identity": {"secret": {"existingName": "mine"}}}],
    [{}, {"networkPolicy": {"enabled": False}}, {"networkPolicy": {"prometheus": []}}],
    [{}, MONITORED],
    [{}, {"serviceAccount": {"create": False}}],
    [{}, {"bindAddress": "[::]"}],
    [{}, {"scaling": {"enabled": False}}, {"scaling": {"previousReplicas": 9}, "cluster": {"initialReplicas": 2}}],
    [{}, {"podDisruptionBudget": {"enabled": False}}],
    [{}, {"config": {"store": {"durability": "os"}, "timeouts": {"propose": "500ms"}}}],
]


def permutations():
    """Every pair of positions of any two switches, the others at rest: faults of templates are of one switch or of two."""
    seen = set()
    for first, second in itertools.combinations(SWITCHES, 2):
        for one, other in itertools.product(first, second):
            values = merged(one, other)
            key = json.dumps(values, sort_keys=True)
            if key not in seen:
                seen.add(key)
                yield values


def case(name):
    return yaml.safe_load((HERE / "values" / f"{name}.yaml").read_text()) or {}


def is_upgrade(values):
    return bool(values.get("scaling", {}).get("previousReplicas"))


VALIDATED = set()


def validate(made):
    if made["kind"] in FOREIGN:
        jsonschema.validate(made, FOREIGN[made["kind"]])
        return
    for version in VERSIONS:
        digest = hashlib.sha256((version + json.dumps(made, sort_keys=True)).encode()).digest()
        if digest not in VALIDATED:
            kubernetes_validate.validate(made, version, strict=True)
            VALIDATED.add(digest)


def check(manifests):
    """What holds of every rendering."""
    assert manifests.objects
    names = [(made["kind"], made["metadata"]["name"]) for made in manifests.objects]
    assert len(names) == len(set(names)), names
    for made in manifests.objects:
        validate(made)
        assert made["metadata"].get("namespace", "prod") == "prod"
        # Names of pods get a number, and are labels too.
        assert len(made["metadata"]["name"]) <= 63
    for made in manifests.objects:
        spec = made.get("spec", {}).get("template", {}).get("spec") if made["kind"] != "Pod" else made["spec"]
        if not spec:
            continue
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] and pod["seccompProfile"] == {"type": "RuntimeDefault"}
        if made["kind"] != "Job":
            assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        for container in spec.get("initContainers", []) + spec["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"] and context["allowPrivilegeEscalation"] is False
            assert context["capabilities"] == {"drop": ["ALL"]}
            mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
            claims = {claim["metadata"]["name"] for claim in made["spec"].get("volumeClaimTemplates") or []}
            assert mounted <= {volume["name"] for volume in spec.get("volumes", [])} | claims
    for made in manifests.of("StatefulSet"):
        labels = made["spec"]["template"]["metadata"]["labels"]
        selectors = [made["spec"]["selector"]["matchLabels"]]
        selectors += [service["spec"]["selector"] for service in manifests.of("Service")]
        selectors += [budget["spec"]["selector"]["matchLabels"] for budget in manifests.of("PodDisruptionBudget")]
        selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in manifests.of("NetworkPolicy")]
        selectors += [monitor["spec"]["selector"]["matchLabels"] for monitor in manifests.of("PodMonitor")]
        for selector in selectors:
            assert selector.items() <= labels.items()


def test_lint():
    for values in [{}, *map(case, CASES)]:
        report = sdk.lint(CHART, values, strict=True, kube_version=f"v{VERSIONS[0]}.0")
        # An icon would be an address elsewhere.
        said = [message["error"] for message in report["messages"]]
        assert report["errors"] == [] and set(said) <= {"icon is recommended"}, report


@pytest.mark.parametrize("name", CASES)
def test_cases_are_valid_and_as_the_golden_files_have_them(name):
    values = case(name)
    manifests = render(values, upgrade=is_upgrade(values))
    check(manifests)
    for secret in manifests.of("Secret"):
        secret["data"] = {key: "(random)" for key in secret["data"]}
    for made in manifests.of("ConfigMap"):
        # A file of the repository as it is.
        if "outrigger.json" in made["data"]:
            assert json.loads(made["data"]["outrigger.json"]) == json.loads((CHART / "files/dashboard.json").read_text())
            made["data"]["outrigger.json"] = "(files/dashboard.json)"
    got = yaml.safe_dump_all(manifests.objects, sort_keys=True, width=1000)
    golden = HERE / "golden" / f"{name}.yaml"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(got)
    want = golden.read_text() if golden.exists() else ""
    difference = "".join(difflib.unified_diff(want.splitlines(True), got.splitlines(True), "golden", "rendered"))
    assert not difference, f"{difference}\nGOLDEN=write tests/helm/run, where this is meant"


def test_every_pair_of_switches_is_valid():
    count = 0
    for values in permutations():
        try:
            check(render(values, upgrade=is_upgrade(values)))
        except Exception as error:
            raise AssertionError(f"with {json.dumps(values)}") from error
        count += 1
    assert count > 100


@pytest.mark.parametrize("name", CASES)
def test_the_program_takes_the_configuration_of_every_pod(name, program, tmp_path):
    values = case(name)
    manifests = render(values, upgrade=is_upgrade(values))
    file = tmp_path / "outrigger.toml"
    file.write_text(manifests.toml())
    voters = next(made["data"]["voters"] for made in manifests.of("ConfigMap") if "voters" in made["data"])
    workload = manifests.one("StatefulSet")["metadata"]["name"]
    # Those that are no founders have seeds instead of a name among the voters.
    for number in range(max(len(voters.split(",")), values.get("replicas", 3)) + 1):
        pod = f"{workload}-{number}"
        environment = pod_environment(manifests, pod, "fd00::7" if "::" in manifests.toml() else "10.0.0.7")
        checked = subprocess.run([program, "check-config", file], env=environment, capture_output=True, text=True)
        assert checked.returncode == 0, checked.stderr
        assert f'name = "{pod}"' in checked.stdout and f'id = "{environment["OUTRIGGER__CLUSTER__ID"]}"' in checked.stdout
        # Also of a pod alone: others may come.
        assert ("[fd00::7]:7117" if "::" in manifests.toml() else "10.0.0.7:7117") in checked.stdout


def pod_environment(manifests, pod, address):
    """What the sidecar's variables are in that pod."""
    fields = {"metadata.name": pod, "status.podIP": address}
    environment = {}
    for variable in manifests.sidecar()["env"]:
        source = variable.get("valueFrom", {})
        if "fieldRef" in source:
            environment[variable["name"]] = fields[source["fieldRef"]["fieldPath"]]
        elif "configMapKeyRef" in source:
            reference = source["configMapKeyRef"]
            environment[variable["name"]] = manifests.one("ConfigMap", reference["name"])["data"][reference["key"]]
        else:
            environment[variable["name"]] = variable["value"]
    return environment


def test_voters_are_of_the_founders_whatever_replicas_says():
    three = render({"replicas": 3})
    five = render({"replicas": 5, "cluster": {"initialReplicas": 3}}, upgrade=True)
    voters = [made.one("ConfigMap", "app-outrigger-founding") for made in (three, five)]
    assert voters[0] == voters[1]
    assert voters[0]["immutable"] and voters[0]["data"]["voters"] == "app-outrigger-0,app-outrigger-1,app-outrigger-2"
    # Seeds and all else in the file too: adding pods must not start the others anew.
    annotations = [made.one("StatefulSet")["spec"]["template"]["metadata"]["annotations"] for made in (three, five)]
    assert annotations[0] == annotations[1]


def test_a_key_is_made_of_enough_chance_and_anew_for_every_release():
    keys = {render().one("Secret")["data"]["cluster.key"] for _ in range(3)}
    assert len(keys) == 3 and min(map(len, keys)) >= 64


@pytest.mark.parametrize("replicas", range(1, 10))
def test_the_budget_keeps_a_majority_whoever_of_the_pods_votes(replicas):
    budgets = render({"replicas": replicas}).of("PodDisruptionBudget")
    gone = [budget["spec"]["maxUnavailable"] for budget in budgets]
    assert gone == ([1] if replicas >= 3 else [])
    # Of as many voters as there may be while pods come or go, from three on, all but one are a majority.
    assert all(voters - 1 >= voters // 2 + 1 for voters in range(3, 20))


def test_the_network_policy_lets_in_peers_prometheus_and_the_applications_clients():
    values = {"application": {"ports": [{"containerPort": 8080}, {"containerPort": 53, "protocol": "UDP"}]}}
    peers, admin, application = render(values).one("NetworkPolicy")["spec"]["ingress"]
    assert peers["ports"] == [{"port": 7117, "protocol": "UDP"}] and len(peers["from"]) == 1
    assert peers["from"][0].keys() == {"podSelector"}
    assert admin["ports"] == [{"port": 9464, "protocol": "TCP"}]
    assert admin["from"][0] == {"podSelector": {"matchLabels": {"outrigger/test-of": "app-outrigger"}}}
    assert admin["from"][1] == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert application == {"ports": [{"port": 8080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}
    nobody = render({"networkPolicy": {"prometheus": []}}).one("NetworkPolicy")["spec"]["ingress"]
    assert [len(rule["from"]) for rule in nobody] == [1, 1], "an empty list would let everybody in"


def test_the_sidecar_is_native_and_first():
    first, then = render().one("StatefulSet")["spec"]["template"]["spec"]["initContainers"]
    assert first["name"] == "outrigger" and first["restartPolicy"] == "Always" and first["startupProbe"]
    assert then["name"] == "outrigger-join" and "restartPolicy" not in then
    assert then["args"] == ["cluster", "add", "$(NODE)", "--within=270s"]
    off = render({"scaling": {"enabled": False}})
    assert [container["name"] for container in off.one("StatefulSet")["spec"]["template"]["spec"]["initContainers"]] == ["outrigger"]
    assert not off.of("Job") and not off.of("Role")


def hooks(values):
    job = render(values, upgrade=True).one("Job")
    assert job["spec"]["activeDeadlineSeconds"] < 300, "Helm gives up before the job does"
    return job["metadata"]["annotations"]["helm.sh/hook"].split(",")


def test_votes_are_taken_away_before_pods_go_and_at_no_other_time():
    assert hooks(case("scale-down")) == ["pre-upgrade", "pre-rollback"]
    assert hooks(case("scale-up")) == hooks({}) == hooks({"scaling": {"previousReplicas": 3}}) == ["pre-rollback"]
    manifests = render(case("scale-down"), upgrade=True)
    container, = manifests.one("Job")["spec"]["template"]["spec"]["containers"]
    assert container["args"][-5:] == ["cluster", "remove", "app-outrigger-3", "--and-higher", "--within=270s"]
    # Whoever has its token may run commands in that one pod and nothing else.
    assert container["args"][2] == "app-outrigger-0"
    for rule in manifests.one("Role")["rules"]:
        assert rule["resourceNames"] == ["app-outrigger-0"] and rule["resources"][0].startswith("pods")


def test_a_chart_of_ones_own_adds_the_sidecar(tmp_path):
    own = tmp_path / "shop"
    shutil.copytree(HERE / "own-chart", own)
    shutil.copytree(CHART, own / "charts/outrigger")
    manifests = render(chart=own)
    check(manifests)
    spec = manifests.one("StatefulSet")["spec"]["template"]["spec"]
    ours = render({"workload": {"name": "shop"}}).one("StatefulSet")["spec"]["template"]["spec"]
    assert [container["name"] for container in spec["initContainers"]] == ["outrigger", "outrigger-join"]
    assert spec["initContainers"] == ours["initContainers"] and spec["volumes"] == ours["volumes"]
    assert manifests.one("ConfigMap", "app-outrigger-founding")["data"]["voters"] == "shop-0,shop-1,shop-2"
    assert manifests.one("Service")["metadata"]["name"] == manifests.one("StatefulSet")["spec"]["serviceName"]


def test_an_application_of_ones_own_gets_no_arguments_of_ours():
    def application(values):
        return render({"application": values}).one("StatefulSet")["spec"]["template"]["spec"]["containers"][0]

    assert application({})["args"] == ["watch"]
    assert "args" not in application({"image": "shop"}) and "command" not in application({"image": "shop"})
    assert "args" not in application({"command": ["/usr/bin/outrigger"]})
    assert application({"image": "shop", "args": ["--fast"]})["args"] == ["--fast"]


def test_names_stay_short_enough_for_pods():
    manifests = render(name="a" * 53)
    check(manifests)
    assert len(manifests.one("StatefulSet")["metadata"]["name"]) <= 52


@pytest.mark.parametrize(
    ("values", "word"),
    [
        ({"replicas": 0}, "replicas"),
        ({"replicas": "three"}, "replicas"),
        ({"replica": 3}, "replica"),
        ({"identity": {"type": "none"}}, "type"),
        ({"identity": {"type": "certManager"}}, "issuerName"),
        ({"config": {"node": {"name": "x"}}}, "node"),
        ({"config": {"store": {"value_size_max": 5}}}, "value_size_max"),
        ({"persistence": {"size": ""}}, "size"),
        ({"persistence": {"accessModes": ["ReadWriteMany"]}}, "accessModes"),
        ({"application": {"ports": [{"containerPort": 9464}]}}, "containerPort"),
        ({"topologySpread": {"zone": "Never"}}, "zone"),
        ({"image": {"digest": "abc"}}, "digest"),
        ({"scaling": {"timeoutSeconds": 0}}, "timeoutSeconds"),
        ({"replicas": 1, "cluster": {"initialReplicas": 3}}, "at least 2"),
        ({"replicas": 2, "cluster": {"initialReplicas": 5}}, "at least 3"),
        ({"replicas": 2, "cluster": {"initialReplicas": 5}, "scaling": {"enabled": False}}, "at least 3"),
    ],
)
def test_what_is_wrong_is_refused_by_name(values, word):
    with pytest.raises(HelmError) as refused:
        render(values)
    assert word in str(refused.value)


def test_commands_in_the_documents_are_there(program):
    text = (ROOT / "docs/operations.md").read_text()
    commands = [line for block in re.findall(r"```sh\n(.*?)```", text, re.S) for line in block.splitlines() if re.match(r"o \d ", line)]
    commands += re.findall(r"`(o \d [^`]*)`", text)
    assert len(commands) > 4
    for command in commands:
        arguments = shlex.split(command, comments=True)[2:]
        # What does not parse fails before the help is shown.
        done = subprocess.run([program, *arguments, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stderr}"
    # Every flag and value that the text names is one.
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for path in re.findall(r"`((?:scaling|monitoring|networkPolicy|identity|cluster|sidecar|persistence)\.\w+(?:\.\w+)*)", text):
        place = values
        for part in path.split("."):
            assert part in place, f"{path} is no value of the chart"
            place = place[part]


def test_notes_say_what_is_weak():
    assert "fewer than three" in render({"replicas": 2}).notes
    assert "even number" in render({"replicas": 4}).notes and "even number" not in render({"replicas": 5}).notes
    assert "cluster remove" in render({"scaling": {"enabled": False}}).notes
    assert "emptyDir" in render({"persistence": {"enabled": False}}).notes
    assert "scrape" in render({"networkPolicy": {"prometheus": []}}).notes
    assert "no password" in render({"networkPolicy": {"enabled": False}}).notes
    assert not any(word in render().notes for word in ("fewer", "even", "emptyDir", "scrape", "password", "remove"))


def test_the_schema_knows_every_value():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def known(schema, values, path):
        for key, value in values.items():
            assert key in schema["properties"], f"{path}{key} is not in the schema"
            below = schema["properties"][key]
            if isinstance(value, dict) and "properties" in below:
                known(below, value, f"{path}{key}.")

    known(schema, values, "")
