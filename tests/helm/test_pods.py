"""Pods as the chart has them, three of them and up to five, without Kubernetes: each in namespaces of its own, with the rendered files where the chart mounts
them, the rendered arguments and variables, a read-only root, not root, no capability; and names that follow the pods' addresses.

    og-pods-PID-0          og-pods-PID-1          og-pods-PID-2         eth0 10.79.0.N: another N after a restart
         └───── veth ────────────┴────── veth ───────────┘
                      og-pods-PID-bridge
"""

import base64
import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import threading
import time

import pytest
from conftest import render
from test_chart import pod_environment

PATIENCE = 60
# How many the chart is installed with, and how many there may be.
PODS = 3
PODS_MAX = 5
# What a container gets, by setpriv: the pod's user and group, fsGroup among its groups, and nothing else.
UNPRIVILEGED = ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]

# The pod's file system, and its program in it. $1: its directory; the rest: what runs.
CONTAINER = r"""
set -e
pod="$1"; shift
mount --make-rprivate /
mount -t tmpfs -o mode=0755 root "$pod/tree"
for there in bin lib lib64 usr dev etc proc tmp run/outrigger var/lib/outrigger etc/outrigger/config etc/outrigger/identity; do mkdir -p "$pod/tree/$there"; done
for there in bin lib lib64 usr dev; do mount --bind "/$there" "$pod/tree/$there"; mount -o remount,bind,ro "$pod/tree/$there"; done
mount -t proc proc "$pod/tree/proc"
for there in hosts host.conf nsswitch.conf; do touch "$pod/tree/etc/$there"; mount --bind "$pod/../$there" "$pod/tree/etc/$there"; done
touch "$pod/tree/outrigger"; mount --bind "$OUTRIGGER" "$pod/tree/outrigger"
mount -t tmpfs -o mode=2770,gid=65532,size=1m socket "$pod/tree/run/outrigger"
mount --bind "$pod/data" "$pod/tree/var/lib/outrigger"
for there in config identity; do mount --bind "$pod/../$there" "$pod/tree/etc/outrigger/$there"; mount -o remount,bind,ro "$pod/tree/etc/outrigger/$there"; done
mount -o remount,ro "$pod/tree"
unset OUTRIGGER
exec chroot "$pod/tree" "$@"
"""


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def sweep():
    """Removes what was left by tests that are gone."""
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split()
    for space in spaces:
        maker = re.match(r"og-pods-(\d+)-", space)
        if maker and not pathlib.Path(f"/proc/{maker[1]}").exists():
            for pid in subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True).stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            ip("netns", "delete", space)


def missing():
    if os.geteuid() != 0:
        return "network namespaces need root"
    for tool, package in [("ip", "iproute2"), ("unshare", "util-linux"), ("setpriv", "util-linux"), ("nsenter", "util-linux")]:
        if not shutil.which(tool):
            return f"{tool} is missing: apt-get install {package}"
    sweep()
    tried = subprocess.run(["ip", "netns", "add", f"og-pods-{os.getpid()}-try"], capture_output=True, text=True)
    if tried.returncode:
        return f"this system does not allow network namespaces: {tried.stderr.strip()}"
    ip("netns", "delete", f"og-pods-{os.getpid()}-try")
    return None


class Pods:
    """A StatefulSet of the rendered chart, and the names that its headless Service would answer with."""

    def __init__(self, work, program):
        self.work, self.program = work, program
        self.manifests = render()
        spec = self.manifests.one("StatefulSet")["spec"]
        self.context = spec["template"]["spec"]["securityContext"]
        self.service = spec["serviceName"]
        self.names = [f"{self.manifests.one('StatefulSet')['metadata']['name']}-{number}" for number in range(PODS_MAX)]
        self.prefix = f"og-pods-{os.getpid()}"
        self.processes = {}
        self.addresses = {}
        self.next_address = 1

    def build(self):
        (self.work / "hosts").write_text("")
        (self.work / "host.conf").write_text("multi on\n")
        (self.work / "nsswitch.conf").write_text("hosts: files\n")
        for folder in ("config", "identity"):
            (self.work / folder).mkdir()
        (self.work / "config/outrigger.toml").write_text(self.manifests.toml())
        for name, value in self.manifests.one("Secret")["data"].items():
            file = self.work / "identity" / name
            file.write_bytes(base64.b64decode(value))
            os.chown(file, 0, self.context["fsGroup"])
            file.chmod(0o440)
        ip("netns", "add", f"{self.prefix}-bridge")
        ip("-n", f"{self.prefix}-bridge", "link", "add", "bridge", "type", "bridge")
        ip("-n", f"{self.prefix}-bridge", "link", "set", "bridge", "up")
        for number in range(PODS_MAX):
            space = f"{self.prefix}-{number}"
            ip("netns", "add", space)
            ip("-n", f"{self.prefix}-bridge", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", f"{self.prefix}-bridge", "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", "eth0", "up")
            (self.work / str(number) / "tree").mkdir(parents=True)
            (self.work / f"{number}.log").touch()
            self.provide(number)

    def provide(self, number):
        """A volume with nothing in it: the first one, or an emptyDir after the one before went with its pod."""
        data = self.work / str(number) / "data"
        shutil.rmtree(data, ignore_errors=True)
        data.mkdir()
        os.chown(data, 0, self.context["fsGroup"])
        data.chmod(0o2770)

    def publish(self):
        """As the headless Service has it: every pod's own name, and all of them under the Service's."""
        lines = [f"127.0.0.1 localhost"]
        for number, address in self.addresses.items():
            lines += [f"{address} {self.names[number]}.{self.service}", f"{address} {self.service}"]
        # In place: it is mounted.
        (self.work / "hosts").write_text("\n".join(lines) + "\n")

    def start(self, number):
        """Never at the address that it had before."""
        address = f"10.79.0.{self.next_address}"
        self.next_address += 1
        ip("-n", f"{self.prefix}-{number}", "address", "flush", "dev", "eth0")
        ip("-n", f"{self.prefix}-{number}", "address", "add", f"{address}/24", "dev", "eth0")
        self.addresses[number] = address
        self.publish()
        environment = {"OUTRIGGER": self.program, "PATH": os.environ["PATH"]}
        environment.update(pod_environment(self.manifests, self.names[number], address))
        user = [f"--reuid={self.context['runAsUser']}", f"--regid={self.context['runAsGroup']}", f"--groups={self.context['fsGroup']}"]
        command = ["ip", "netns", "exec", f"{self.prefix}-{number}", "unshare", "--mount", "sh", "-c", CONTAINER, "container", self.work / str(number)]
        command += ["/usr/bin/setpriv", *user, *UNPRIVILEGED, "/outrigger", *self.manifests.sidecar()["args"]]
        log = (self.work / f"{number}.log").open("a")
        self.processes[number] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def stop(self, number, how=signal.SIGTERM):
        process = self.processes.pop(number)
        process.send_signal(how)
        assert process.wait(PATIENCE) == (0 if how == signal.SIGTERM else -how)
        del self.addresses[number]
        self.publish()

    def inside(self, number, *arguments, user=1000):
        """The program in the application's container: another user, who shares the pod's group."""
        process = self.processes[number]
        variables = ["OUTRIGGER_SOCKET=/run/outrigger/outrigger.sock"]
        command = ["nsenter", f"--target={process.pid}", "--mount", "--net", "--root", "/usr/bin/env", "-i", *variables]
        command += ["/usr/bin/setpriv", f"--reuid={user}", f"--regid={user}", f"--groups={self.context['fsGroup']}", *UNPRIVILEGED, "/outrigger", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)

    def join(self, *numbers):
        """What follows the sidecar in each of these pods, all at once, and what it said."""
        spec = self.manifests.one("StatefulSet")["spec"]["template"]["spec"]
        container = next(made for made in spec["initContainers"] if made["name"] == "outrigger-join")

        def run(number):
            arguments = [argument.replace("$(NODE)", self.names[number]) for argument in container["args"]]
            return self.inside(number, *arguments, user=self.context["runAsUser"])

        with concurrent.futures.ThreadPoolExecutor() as threads:
            done = list(threads.map(run, numbers))
        assert all(each.returncode == 0 for each in done), "".join(each.stderr for each in done) + self.logs()
        return done

    def start_all(self, *numbers):
        """As Kubernetes starts pods: the sidecar, and once its socket answers what follows it."""
        for number in numbers:
            self.start(number)
        self.until("sockets answer", lambda: all(self.inside(number, "status").returncode == 0 for number in numbers))
        self.join(*numbers)

    def render(self, replicas):
        """The chart with so many pods in place of those that run: for the pods that stay nothing may be another."""
        values = {"replicas": replicas, "cluster": {"initialReplicas": PODS}, "scaling": {"previousReplicas": len(self.processes)}}
        manifests = render(values, upgrade=True)
        for kind, name in [("ConfigMap", None), ("ConfigMap", "app-outrigger-founding"), ("StatefulSet", None)]:
            before, after = ([made for made in each.of(kind) if name in (None, made["metadata"]["name"])] for each in (self.manifests, manifests))
            for made in before + after:
                made["spec"] = {**made.get("spec", {}), "replicas": None}
            assert before == after
        self.manifests = manifests

    def take_votes(self, within=None):
        """What the chart's job does before pods go."""
        job = self.manifests.one("Job")
        assert "pre-upgrade" in job["metadata"]["annotations"]["helm.sh/hook"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        call, command = container["args"][: container["args"].index("--")], container["args"][container["args"].index("--") + 1 :]
        assert call[0] == "exec" and call[-1] == "--container=outrigger" and command.pop(0) == "/usr/bin/outrigger"
        if within:
            command = [f"--within={within}" if argument.startswith("--within=") else argument for argument in command]
        return self.inside(self.names.index(call[2]), *command, user=self.context["runAsUser"])

    def voters(self, number=0):
        status = json.loads(self.said(number, "status", "--json"))
        assert not status["joint"]
        return {self.names.index(voter) for voter in status["voters"]}

    def epoch(self, number=0):
        return json.loads(self.said(number, "status", "--json"))["epoch"]

    def is_ready(self, number):
        return self.inside(number, "health", "--admin", "127.0.0.1:9464").returncode == 0

    def said(self, number, *arguments):
        done = self.inside(number, *arguments)
        assert done.returncode == 0, done.stderr + self.logs()
        return done.stdout

    def logs(self):
        return "".join(f"\n--- {name}\n{(self.work / f'{number}.log').read_text()}" for number, name in enumerate(self.names))

    def until(self, what, tried):
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            for number, process in self.processes.items():
                assert process.poll() is None, f"{self.names[number]} ended{self.logs()}"
            if tried():
                return
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {PATIENCE} s{self.logs()}")

    def ready(self):
        """All are, and know each other by the addresses that they have now."""

        def all_know_all():
            for number in self.processes:
                done = self.inside(number, "status", "--json")
                if done.returncode:
                    return False
                status = json.loads(done.stdout)
                known = {node["node"]: node["address"] for node in status["nodes"] if node["live"]}
                if status.get("unready") or known != {self.names[n]: f"{address}:7117" for n, address in self.addresses.items()}:
                    return False
            return True

        self.until("every node ready and known where it is", all_know_all)

    def end(self):
        for process in self.processes.values():
            process.kill()
            process.wait()
        for space in [f"{self.prefix}-{number}" for number in range(PODS_MAX)] + [f"{self.prefix}-bridge"]:
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", space)


@pytest.fixture
def pods(tmp_path, program):
    why = missing()
    if why:
        pytest.skip(f"pods were not tried: {why}")
    pods = Pods(tmp_path, program)
    try:
        pods.build()
        pods.start_all(*range(PODS))
        pods.ready()
        yield pods
    finally:
        pods.end()


def test_pods_find_each_other_by_name_wherever_they_are_started(pods):
    pods.said(0, "put", "k", "one")
    # What `helm test` asks, from a pod of the same network.
    for container in pods.manifests.one("Pod")["spec"]["containers"]:
        assert "ready" in pods.said(1, *container["args"])
    # One moves, told or killed; the others go on meanwhile, and it has what it missed.
    for how, value in [(signal.SIGTERM, "two"), (signal.SIGKILL, "three")]:
        pods.stop(2, how)
        pods.until("a write without it", lambda: pods.inside(0, "put", "k", value).returncode == 0)
        pods.start_all(2)
        pods.ready()
        assert pods.said(2, "get", "k") == value
        pods.said(2, "put", "moved", value)
        assert pods.said(1, "get", "moved", "--consistency", "quorum") == value
    # All move at once: nobody is where anybody remembers, and only the names tell.
    for number in range(PODS):
        pods.stop(number)
    pods.start_all(*range(PODS))
    pods.ready()
    assert pods.said(0, "get", "k", "--consistency", "quorum") == "three"
    assert pods.epoch() == 1, "nobody who votes is added"


class Writer:
    """An application in pod 0 that writes all the time; every write must get through, and be there in the end."""

    def __init__(self, pods):
        self.pods, self.count, self.failed = pods, 0, []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.ended.is_set() and not self.failed:
            done = self.pods.inside(0, "put", f"written/{self.count}", "x", "--timeout", "20s")
            if done.returncode:
                self.failed.append(done.stderr)
            else:
                self.count += 1

    def goes_on(self):
        wanted = self.count + 5
        self.pods.until("writes go on", lambda: self.count >= wanted or self.failed)
        assert not self.failed, self.failed

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.thread.join()


def written(pods, number):
    lines = pods.said(number, "list", "written/", "--json").splitlines()
    return {json.loads(line)["key"] for line in lines}


def test_three_pods_become_five_and_three_again(pods):
    with Writer(pods) as writer:
        pods.render(5)
        # Both at once, in no order, before either has found the others.
        pods.start_all(3, 4)
        assert pods.voters() == {0, 1, 2, 3, 4}
        pods.ready()
        writer.goes_on()
        # Theirs are votes: of five, two may be away, and whoever is merely away keeps its vote.
        before = pods.epoch()
        for number in (1, 2):
            pods.stop(number)
        writer.goes_on()
        pods.start_all(1, 2)
        pods.stop(3, signal.SIGKILL)
        pods.start_all(3)
        pods.ready()
        assert (pods.voters(), pods.epoch()) == ({0, 1, 2, 3, 4}, before)
        # Down again; the one that is away at that moment too.
        pods.stop(4)
        pods.render(3)
        done = pods.take_votes()
        assert done.returncode == 0, done.stderr + pods.logs()
        assert pods.voters() == {0, 1, 2}
        writer.goes_on()
        # The cluster has let go of them: two of three are a majority again.
        pods.stop(3)
        pods.stop(2)
        writer.goes_on()
        pods.start_all(2)
        pods.ready()
        # Asked again, as where the upgrade failed later: nothing is left to be done.
        before = pods.epoch()
        assert pods.take_votes().returncode == 0 and pods.epoch() == before
        # Their volumes are still there, and one of them says that its node votes.
        pods.render(5)
        pods.start_all(3, 4)
        assert pods.voters() == {0, 1, 2, 3, 4}
        pods.ready()
        writer.goes_on()
    wanted = {f"written/{number}" for number in range(writer.count)}
    pods.until("all that was acknowledged is everywhere", lambda: all(wanted <= written(pods, number) for number in pods.processes))


def test_votes_stay_where_too_few_would_be_left(pods):
    """Removing pod 2 while pod 1 was away left pod 0 alone of two: no write got through any more."""
    pods.stop(1)
    pods.render(2)
    pods.until("it is known to be away", lambda: "2 of 3 voters live" in pods.said(0, "status"))
    # So it is the upgrade that fails, with all pods as they were.
    pods.manifests.one("Job")["metadata"]["annotations"]["helm.sh/hook"] = "pre-upgrade,pre-rollback"
    done = pods.take_votes(within="2s")
    assert done.returncode == 69 and "1 of 2 voters, 2 needed; nothing was changed" in done.stderr, done.stderr
    assert pods.voters() == {0, 1, 2}
    pods.said(0, "put", "k", "v")
    pods.start_all(1)
    pods.ready()
    assert pods.take_votes().returncode == 0 and pods.voters() == {0, 1}
    pods.said(0, "put", "k", "w")


def test_pods_that_lose_their_emptydir_one_after_the_other_lose_nothing(pods):
    """An upgrade of pods with `persistence.enabled: false`. Kubernetes goes on as soon as a pod is ready, which it was while its vote was
    still the lost disk's."""
    pods.said(0, "put", "k", "v")
    for number in (2, 1, 0):
        pods.stop(number)
        pods.provide(number)
        pods.start_all(number)
        pods.until("ready", lambda: pods.is_ready(number))
    pods.ready()
    assert pods.voters() == {0, 1, 2}
    for number in range(PODS):
        assert pods.said(number, "get", "k") == "v" == pods.said(number, "get", "k", "--consistency", "quorum")
    # And one that is lost with nobody told of it.
    pods.stop(1, signal.SIGKILL)
    pods.provide(1)
    pods.start_all(1)
    pods.until("ready", lambda: pods.is_ready(1))
    pods.stop(2)
    pods.until("a write with its vote", lambda: pods.inside(0, "put", "k", "w").returncode == 0)


def test_a_pod_may_write_nothing_but_its_volumes(pods):
    status = pathlib.Path(f"/proc/{pods.processes[0].pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines())
    assert fields["Uid"].split() == ["65532"] * 4 and fields["Gid"].split() == ["65532"] * 4
    assert all(int(fields[name], 16) == 0 for name in ("CapEff", "CapPrm", "CapBnd")) and fields["NoNewPrivs"].strip() == "1"
    mounts = pathlib.Path(f"/proc/{pods.processes[0].pid}/mounts").read_text().splitlines()
    writable = {line.split()[1] for line in mounts if "rw" in line.split()[3].split(",")}
    assert writable <= {"/run/outrigger", "/var/lib/outrigger", "/proc", "/etc/hosts", "/etc/host.conf", "/etc/nsswitch.conf", "/outrigger"}, writable
    # Who is not of the pod's group gets nothing.
    process = pods.processes[0]
    stranger = ["nsenter", f"--target={process.pid}", "--mount", "--root", "/usr/bin/setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"]
    refused = subprocess.run([*stranger, "/outrigger", "--socket", "/run/outrigger/outrigger.sock", "get", "k"], capture_output=True, text=True)
    assert refused.returncode == 69 and "ermission denied" in refused.stderr
