"""Helm itself installs and upgrades the chart, against as much of Kubernetes as it asks for: what was made once stays."""

import base64
import copy
import json

import pytest
from conftest import CHART
from helm_python.config import Config
from helm_python.errors import HelmError
from kubernetes import Kubernetes

STATEFUL_SET = ("StatefulSet", "app-outrigger")


@pytest.fixture
def cluster():
    kubernetes = Kubernetes()
    yield kubernetes
    kubernetes.close()


@pytest.fixture
def helm(cluster):
    with Config(namespace="prod", kube_apiserver=cluster.url, storage_driver="memory") as config:
        yield config


def voters(cluster):
    return cluster.get("ConfigMap", "app-outrigger-founding")["data"]["voters"]


def test_an_upgrade_keeps_the_key_and_the_voters(helm, cluster):
    helm.install(CHART, "app", {"replicas": 3})
    key = cluster.get("Secret", "app-outrigger-key")["data"]
    assert len(base64.b64decode(key["cluster.key"])) == 64
    before = copy.deepcopy(cluster.get(*STATEFUL_SET)["spec"])
    helm.upgrade(CHART, "app", {"replicas": 3, "image": {"tag": "0.2.0"}})
    assert cluster.get("Secret", "app-outrigger-key")["data"] == key
    assert voters(cluster) == "app-outrigger-0,app-outrigger-1,app-outrigger-2"
    after = cluster.get(*STATEFUL_SET)["spec"]
    assert after["template"]["spec"]["initContainers"][0]["image"] == "outrigger:0.2.0"
    assert after["template"]["metadata"] == before["template"]["metadata"]


def test_another_number_of_pods_changes_no_founders(helm, cluster):
    helm.install(CHART, "app", {"replicas": 3})
    before = copy.deepcopy(cluster.get(*STATEFUL_SET)["spec"])
    helm.upgrade(CHART, "app", {"replicas": 5})
    assert voters(cluster) == "app-outrigger-0,app-outrigger-1,app-outrigger-2"
    after = cluster.get(*STATEFUL_SET)["spec"]
    assert after["replicas"] == 5
    # No other pod is started anew for it.
    assert after["template"] == before["template"]
    # Also for who comes later and takes five for what it was founded with.
    with pytest.raises(HelmError, match="founded with 3"):
        helm.upgrade(CHART, "app", {"replicas": 5, "cluster": {"initialReplicas": 5}})


def test_the_cluster_keeps_its_id(helm, cluster):
    helm.install(CHART, "app", {"cluster": {"id": "first"}})
    for values in ({}, {"cluster": {"id": "first"}}):
        helm.upgrade(CHART, "app", values)
        assert cluster.get("ConfigMap", "app-outrigger-founding")["data"]["id"] == "first"
    with pytest.raises(HelmError, match="cluster.id.*want \"first\""):
        helm.upgrade(CHART, "app", {"cluster": {"id": "second"}})


SCALE_DOWN = ("CREATE", "Job", "app-outrigger-scale-down")


def taken_away(cluster):
    """From which pod on votes were taken away before the StatefulSet was changed; nothing where they were not."""
    if SCALE_DOWN not in cluster.log:
        return None
    job = cluster.log.index(SCALE_DOWN)
    assert cluster.log.index(("CREATE", "RoleBinding", "app-outrigger-scale-down")) < job < cluster.log.index(("CHANGE", *STATEFUL_SET))
    # What may run commands in pods is gone afterwards.
    assert not [key for key in cluster.objects if key[1] == "app-outrigger-scale-down"]
    made = cluster.made[SCALE_DOWN[1:]]
    return made["spec"]["template"]["spec"]["containers"][0]["args"][-3]


def test_votes_are_taken_away_before_pods_go(helm, cluster):
    helm.install(CHART, "app", {"replicas": 5})
    assert SCALE_DOWN not in cluster.log
    cluster.log.clear()
    helm.upgrade(CHART, "app", {"replicas": 3})
    assert taken_away(cluster) == "app-outrigger-3"
    assert cluster.get(*STATEFUL_SET)["spec"]["replicas"] == 3
    # By none that leaves the pods where they are, or brings more.
    for values in ({"replicas": 3, "image": {"tag": "0.2.0"}}, {"replicas": 4}):
        cluster.log.clear()
        helm.upgrade(CHART, "app", values)
        assert taken_away(cluster) is None
    # Where somebody else made more pods of them meanwhile, these are what counts.
    cluster.get(*STATEFUL_SET)["spec"]["replicas"] = 6
    cluster.log.clear()
    helm.upgrade(CHART, "app", {"replicas": 5})
    assert taken_away(cluster) == "app-outrigger-5"


def test_a_rollback_takes_votes_away_too(helm, cluster):
    helm.install(CHART, "app", {"replicas": 3})
    helm.upgrade(CHART, "app", {"replicas": 5})
    cluster.log.clear()
    helm.rollback("app", version=1)
    assert taken_away(cluster) == "app-outrigger-3"
    assert cluster.get(*STATEFUL_SET)["spec"]["replicas"] == 3
    # And the other way round nothing is there to be taken.
    cluster.log.clear()
    helm.rollback("app", version=2)
    assert taken_away(cluster) == "app-outrigger-5"
    assert cluster.get(*STATEFUL_SET)["spec"]["replicas"] == 5


def test_scaling_that_is_off_is_nobody_else_s_business(helm, cluster):
    helm.install(CHART, "app", {"replicas": 5, "scaling": {"enabled": False}})
    cluster.log.clear()
    helm.upgrade(CHART, "app", {"replicas": 3, "scaling": {"enabled": False}})
    assert taken_away(cluster) is None
    assert cluster.get(*STATEFUL_SET)["spec"]["replicas"] == 3


def test_what_renders_without_looking_cannot_replace_key_or_voters(helm, cluster):
    helm.install(CHART, "app", {"replicas": 3})
    for kind, name, data in [
        ("Secret", "app-outrigger-key", {"cluster.key": "b3RoZXI="}),
        ("ConfigMap", "app-outrigger-founding", {"id": "other", "initialReplicas": "5", "voters": "x"}),
    ]:
        made = cluster.get(kind, name)
        assert made["immutable"] is True, "Kubernetes would let it be changed"
        changed = {**copy.deepcopy(made), "data": data}
        plural = kind.lower() + "s"
        status, _ = cluster.answer("PUT", f"/api/v1/namespaces/prod/{plural}/{name}", {}, json.dumps(changed).encode())
        assert status == 422


def test_a_release_that_goes_leaves_what_its_volumes_need(helm, cluster):
    helm.install(CHART, "app", {"replicas": 3})
    key = cluster.get("Secret", "app-outrigger-key")["data"]
    helm.uninstall("app")
    assert STATEFUL_SET not in cluster.objects
    helm.install(CHART, "app", {"replicas": 3})
    assert cluster.get("Secret", "app-outrigger-key")["data"] == key
    helm.upgrade(CHART, "app", {"replicas": 5})
    assert voters(cluster) == "app-outrigger-0,app-outrigger-1,app-outrigger-2"
