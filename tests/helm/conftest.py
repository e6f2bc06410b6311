"""What the tests of the chart share: rendering it, and telling its objects apart."""

import copy
import os
import pathlib

import pytest
import yaml
from helm_python import chart as sdk

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
CHART = ROOT / "helm"
MONITORED = {"monitoring": {name: {"enabled": True} for name in ("podMonitor", "prometheusRule", "dashboard")}}


def merged(*parts):
    out = {}
    for part in parts:
        for key, value in copy.deepcopy(part).items():
            out[key] = merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


class Manifests:
    """Objects of one rendering."""

    def __init__(self, rendered):
        texts = [text for path, text in sorted(rendered.items()) if not path.endswith("NOTES.txt")]
        self.notes = next((text for path, text in rendered.items() if path.endswith("NOTES.txt")), "")
        self.objects = [made for text in texts for made in yaml.safe_load_all(text) if made]

    def of(self, kind):
        return [made for made in self.objects if made["kind"] == kind]

    def one(self, kind, name=None):
        found = [made for made in self.of(kind) if name is None or made["metadata"]["name"] == name]
        assert len(found) == 1, f"{len(found)} of {kind} {name or ''}"
        return found[0]

    def sidecar(self):
        spec = self.one("StatefulSet")["spec"]["template"]["spec"]
        return next(made for made in spec["initContainers"] if made["name"] == "outrigger")

    def toml(self):
        found = [made["data"]["outrigger.toml"] for made in self.of("ConfigMap") if "outrigger.toml" in made["data"]]
        assert len(found) == 1
        return found[0]

    def alerts(self):
        return self.one("PrometheusRule")["spec"]


def render(values=None, chart=CHART, name="app", namespace="prod", upgrade=False):
    with sdk.Chart.load(chart) as loaded:
        rendered = loaded.render(
            values or {}, name=name, namespace=namespace, is_install=not upgrade, is_upgrade=upgrade
        )
    return Manifests(rendered)


@pytest.fixture(scope="session")
def program():
    """The program under test, as tests/helm/run built it."""
    path = os.environ.get("OUTRIGGER")
    assert path and os.access(path, os.X_OK), "start these tests by tests/helm/run"
    return path
