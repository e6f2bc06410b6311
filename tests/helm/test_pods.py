"""Three pods as the chart has them, without Kubernetes: each in namespaces of its own, with the rendered files where the chart mounts
them, the rendered arguments and variables, a read-only root, not root, no capability; and names that follow the pods' addresses.

    og-pods-PID-0          og-pods-PID-1          og-pods-PID-2         eth0 10.79.0.N: another N after a restart
         └───── veth ────────────┴────── veth ───────────┘
                      og-pods-PID-bridge
"""

import base64
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import time

import pytest
from conftest import render
from test_chart import pod_environment

PATIENCE = 60
PODS = 3
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
        self.names = [f"{self.manifests.one('StatefulSet')['metadata']['name']}-{number}" for number in range(PODS)]
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
        for number in range(PODS):
            space = f"{self.prefix}-{number}"
            ip("netns", "add", space)
            ip("-n", f"{self.prefix}-bridge", "link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("-n", f"{self.prefix}-bridge", "link", "set", f"port{number}", "master", "bridge", "up")
            ip("-n", space, "link", "set", "lo", "up")
            ip("-n", space, "link", "set", "eth0", "up")
            for folder in ("tree", "data"):
                (self.work / str(number) / folder).mkdir(parents=True)
            os.chown(self.work / str(number) / "data", 0, self.context["fsGroup"])
            (self.work / str(number) / "data").chmod(0o2770)

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
            for number in range(PODS):
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
        for space in [f"{self.prefix}-{number}" for number in range(PODS)] + [f"{self.prefix}-bridge"]:
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
        for number in range(PODS):
            pods.start(number)
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
        pods.start(2)
        pods.ready()
        assert pods.said(2, "get", "k") == value
        pods.said(2, "put", "moved", value)
        assert pods.said(1, "get", "moved", "--consistency", "quorum") == value
    # All move at once: nobody is where anybody remembers, and only the names tell.
    for number in range(PODS):
        pods.stop(number)
    for number in range(PODS):
        pods.start(number)
    pods.ready()
    assert pods.said(0, "get", "k", "--consistency", "quorum") == "three"


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
