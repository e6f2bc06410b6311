"""Alerts by promtool, case by case; then a real Prometheus that scrapes a real cluster, and every query of the dashboard."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
import urllib.parse
import urllib.request

import pytest
import yaml
from conftest import CHART, HERE, MONITORED, ROOT, merged, render

# How long a cluster, Prometheus or a query may take to be there, in seconds: two cores may be shared by much else.
PATIENCE = 120


def rules(values=None):
    return render(merged(MONITORED, values or {})).alerts()


def alerts():
    return [rule for group in rules()["groups"] for rule in group["rules"]]


def cases():
    return yaml.safe_load((HERE / "alerts.yaml").read_text())


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def samples(fine, case):
    """The case's series over those that are fine, each named by promtool's own words."""
    rows = {row["series"]: row["values"] for row in fine}
    rows.update({row["series"]: row["values"] for row in case.get("series", [])})
    return [{"series": series.replace('job="J"', 'job="prod/app-outrigger"'), "values": values} for series, values in rows.items()]


def expected(case, rule):
    text = lambda value: value.replace("J", "prod/app-outrigger") if value == "J" else value
    return {
        "exp_labels": {key: text(value) for key, value in case["labels"].items()},
        "exp_annotations": {"summary": re.sub(r"\bJ\b", "prod/app-outrigger", case["summary"])},
    }


def test_the_rules_are_prometheus_rules(tmp_path):
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rules()))
    promtool("check", "rules", "--lint-fatal", str(file))
    assert "@" not in re.sub(r"\S*@\S*example\S*", "", file.read_text()), "a placeholder is left"


def test_alerts_fire_when_they_should_and_not_before(tmp_path):
    # The summary is compared, with what its template makes of labels and value; the rest would only be written twice.
    by_name = {}
    short = rules()
    for group in short["groups"]:
        for rule in group["rules"]:
            rule["annotations"] = {"summary": rule["annotations"]["summary"]}
            by_name[rule["alert"]] = rule
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(short))
    given = cases()
    tried = {case["alert"] for case in given["cases"]}
    assert tried == set(by_name), "each alert has a case, each case an alert"
    tests = [
        {
            "name": case["alert"],
            "interval": "1m",
            "input_series": samples(given["fine"], case),
            "alert_rule_test": [
                {"alertname": case["alert"], "eval_time": case["quiet"]},
                {"alertname": case["alert"], "eval_time": case["fires"], "exp_alerts": [expected(case, by_name[case["alert"]])]},
            ],
        }
        for case in given["cases"]
    ]
    fine = {"name": "fine", "interval": "1m", "input_series": samples(given["fine"], {})}
    fine["alert_rule_test"] = [{"alertname": name, "eval_time": time} for name in by_name for time in ("0m", "20m", "59m")]
    file = tmp_path / "tests.yaml"
    file.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [fine, *tests]}))
    promtool("test", "rules", str(file))


def test_every_alert_is_explained_where_it_says():
    text = (ROOT / "docs/operations.md").read_text()
    for rule in alerts():
        assert rule["annotations"]["runbook"] == f"docs/operations.md#{rule['alert'].lower()}"
        assert f"\n### {rule['alert']}\n" in text, f"{rule['alert']} is not explained"
    explained = re.findall(r"^### (Outrigger\w+)$", text, re.MULTILINE)
    assert sorted(explained) == sorted(rule["alert"] for rule in alerts()), "an alert is explained that is not there"


def dashboard():
    return json.loads((CHART / "files/dashboard.json").read_text())


def queries():
    """The dashboard's, with its variables filled in."""
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"].replace("$__rate_interval", "30s").replace("$job", "prod/app-outrigger")
            yield panel["title"], expression


def metrics_of(expression):
    names = re.findall(r"\boutrigger_\w+", expression)
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def known_metrics():
    text = (ROOT / "src/telemetry.rs").read_text()
    return set(re.findall(r'^    \w+, (?:Counter|Gauge|Histogram), "(\w+)"', text, re.MULTILINE))


def test_nobody_asks_for_a_metric_that_is_not_there():
    known = known_metrics()
    assert len(known) > 30
    for where, expression in [*queries(), *((rule["alert"], rule["expr"]) for rule in alerts())]:
        assert metrics_of(expression) <= known, f"{where}: {metrics_of(expression) - known}"


def test_panels_have_ids_places_and_units():
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken, f"{panel['title']} lies on another"
        taken |= cells
        assert panel["type"] == "row" or panel["fieldConfig"]["defaults"]["unit"]


class Process:
    """A program, its output in a file, ended with the test and with all that it started."""

    def __init__(self, command, log):
        self.log = log
        self.process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)

    def running(self):
        assert self.process.poll() is None, f"it ended:\n{self.log.read_text()}"
        return self.log.read_text()

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def until(what, tried, *processes):
    """Asks until there is an answer."""
    end = time.monotonic() + PATIENCE
    last = None
    while time.monotonic() < end:
        for process in processes:
            process.running()
        try:
            answer = tried()
            if answer:
                return answer
        except OSError as error:
            last = error
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {PATIENCE} s; {last}\n" + "\n".join(process.log.read_text() for process in processes))


@pytest.fixture(scope="module")
def prometheus(program, tmp_path_factory):
    """Asks a Prometheus with the chart's rules, which scrapes three nodes at work."""
    work = tmp_path_factory.mktemp("prometheus")
    started = []
    try:
        dev = Process([program, "dev", "--dir", work / "dev"], work / "dev.log")
        started.append(dev)
        admins = until("a cluster", lambda: re.findall(r"http://([0-9.:]+)/", dev.running())[2:] and re.findall(r"http://([0-9.:]+)/", dev.running()), dev)
        sockets = [work / "dev" / name / "outrigger.sock" for name in "abc"]
        (work / "rules.yaml").write_text(yaml.safe_dump(rules()))
        scrape = {
            "job_name": "prod/app-outrigger",
            "static_configs": [{"targets": [admin], "labels": {"pod": f"app-outrigger-{number}"}} for number, admin in enumerate(admins)],
        }
        configuration = {
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(work / "rules.yaml")],
            "scrape_configs": [scrape],
        }
        (work / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = [f"--config.file={work}/prometheus.yaml", f"--storage.tsdb.path={work}/data", f"--web.listen-address=127.0.0.1:{port}"]
        server = Process(["prometheus", *arguments], work / "prometheus.log")
        started.append(server)

        def ask(path, **parameters):
            url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)["data"]

        until("Prometheus", lambda: ask("query", query="sum(up)")["result"], server, dev)
        # All kinds of work, over and over, as rates want more than one sample: both dialects, a watcher, quorum reads.
        started.append(Process([program, "--socket", sockets[0], "watch"], work / "watch.log"))
        script = 'while :; do for p in http resp; do for c in local quorum; do "$0" --socket "$1" bench --seconds 2 --clients 4 --keys 50 --reads 0.5 --protocol $p --consistency $c; done; done; "$0" --socket "$1" put watched "$(date)"; done'
        started.append(Process(["sh", "-c", script, program, sockets[0]], work / "load.log"))
        yield lambda path, **parameters: until(f"{path} {parameters}", lambda: ask(path, **parameters), server, dev)
    finally:
        for process in reversed(started):
            process.end()


def test_every_query_of_the_dashboard_has_data(prometheus):
    end = time.monotonic() + PATIENCE
    missing = list(queries())
    assert len(missing) > 30
    while missing and time.monotonic() < end:
        # A quantile of nothing is not a number.
        missing = [(title, query) for title, query in missing if not any(row["value"][1] != "NaN" for row in prometheus("query", query=query)["result"])]
        time.sleep(0.5)
    assert not missing, "no data for:\n" + "\n".join(f"{title}: {query}" for title, query in missing)


def test_the_alerts_are_evaluated_and_silent_where_all_is_well(prometheus):
    def evaluated():
        found = [rule for group in prometheus("rules")["groups"] for rule in group["rules"]]
        return found if all(rule["health"] == "ok" for rule in found) else None

    found = until("the rules", evaluated)
    assert {rule["name"] for rule in found} == {rule["alert"] for rule in alerts()}
    assert not [rule["name"] for rule in found if rule["state"] == "firing"]


def test_every_metric_that_is_scraped_is_in_the_table(prometheus):
    names = prometheus("label/__name__/values")
    assert {name for name in names if name.startswith("outrigger_")}
    for name in names:
        assert not name.startswith("outrigger_") or metrics_of(name) <= known_metrics() or name in known_metrics(), name
