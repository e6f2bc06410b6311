"""As much of a Kubernetes API server as Helm needs to install and upgrade: it keeps objects, refuses to change immutable ones, and
calls every job done at once."""

import http.server
import json
import re
import threading
import urllib.parse

import yaml

KINDS = {
    "v1": [("ConfigMap", "configmaps"), ("Secret", "secrets"), ("Service", "services"), ("ServiceAccount", "serviceaccounts"), ("Pod", "pods")],
    "apps/v1": [("StatefulSet", "statefulsets")],
    "batch/v1": [("Job", "jobs")],
    "policy/v1": [("PodDisruptionBudget", "poddisruptionbudgets")],
    "networking.k8s.io/v1": [("NetworkPolicy", "networkpolicies")],
    "rbac.authorization.k8s.io/v1": [("Role", "roles"), ("RoleBinding", "rolebindings")],
}
PATH = re.compile(r"^/(?:api/(?P<core>v1)|apis/(?P<group>[^/]+/[^/]+))/namespaces/(?P<namespace>[^/]+)/(?P<plural>[^/]+)(?:/(?P<name>[^/]+))?$")


class Kubernetes:
    """`objects` by kind and name; `made`, with those that are gone; `log` of what was written, in order."""

    def __init__(self):
        self.objects = {}
        self.made = {}
        self.log = []
        self.version = 0
        self.lock = threading.Lock()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self):
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                path, _, query = self.path.partition("?")
                status, made = server.answer(self.command, path, dict(urllib.parse.parse_qsl(query)), body)
                text = json.dumps(made).encode()
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def get(self, kind, name):
        return self.objects[(kind, name)]

    def answer(self, method, path, query, body):
        with self.lock:
            return self.discovery(path) or self.resource(method, path, query, body) or refusal(404, "NotFound", path)

    def discovery(self, path):
        if path == "/version":
            return 200, {"major": "1", "minor": "34", "gitVersion": "v1.34.0"}
        if path == "/api":
            return 200, {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = []
            for group in KINDS:
                if "/" in group:
                    version = {"groupVersion": group, "version": group.split("/")[1]}
                    groups.append({"name": group.split("/")[0], "versions": [version], "preferredVersion": version})
            return 200, {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}
        if path == "/openapi/v3":
            return 200, {"paths": {place(group): {"serverRelativeURL": f"/openapi/v3/{place(group)}"} for group in KINDS}}
        if path.startswith("/openapi/v3/"):
            return 200, specification(path.removeprefix("/openapi/v3/"))
        group = path.removeprefix("/api/").removeprefix("/apis/")
        if group in KINDS:
            verbs = ["get", "list", "watch", "create", "update", "patch", "delete"]
            resources = [{"name": plural, "singularName": kind.lower(), "namespaced": True, "kind": kind, "verbs": verbs} for kind, plural in KINDS[group]]
            return 200, {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group, "resources": resources}
        return None

    def resource(self, method, path, query, body):
        place = PATH.match(path)
        if not place:
            return None
        group = place["core"] or place["group"]
        kind = next((kind for kind, plural in KINDS.get(group, []) if plural == place["plural"]), None)
        if kind is None:
            return None
        name = place["name"]
        if method == "GET" and name is None:
            found = [made for (of, _), made in self.objects.items() if of == kind and selected(made, query)]
            return 200, {"kind": f"{kind}List", "apiVersion": group, "metadata": {"resourceVersion": str(self.version)}, "items": found}
        key = (kind, name)
        if method == "GET":
            return (200, self.objects[key]) if key in self.objects else None
        if method == "DELETE":
            if key not in self.objects:
                return None
            self.log.append(("DELETE", *key))
            return 200, self.objects.pop(key)
        made = yaml.safe_load(body)
        key = (kind, made["metadata"]["name"])
        before = self.objects.get(key)
        if method == "POST" and before:
            return refusal(409, "AlreadyExists", path)
        if method == "PATCH" and "merge-patch" in query.get("content", ""):
            return None
        if before and before.get("immutable") and before.get("data") != made.get("data"):
            return refusal(422, "Invalid", f"{kind} {key[1]}: data: Forbidden: field is immutable when `immutable` is set")
        self.version += 1
        made["metadata"].update(namespace=place["namespace"], uid=f"uid-{key[1]}", resourceVersion=str(self.version), generation=1)
        if kind == "Job":
            made["status"] = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
        # Not every change, and no reads: the order in which things were made or changed.
        self.log.append(("CREATE" if before is None else "CHANGE", *key))
        self.objects[key] = self.made[key] = made
        return (200 if before else 201), made


def place(group):
    return f"apis/{group}" if "/" in group else f"api/{group}"


def specification(where):
    """That the server checks fields itself, so that Helm need not."""
    group = where.removeprefix("apis/").removeprefix("api/")
    name, _, version = group.rpartition("/")
    paths = {
        f"/{where}/namespaces/{{namespace}}/{plural}/{{name}}": {
            "patch": {
                "x-kubernetes-group-version-kind": {"group": name, "version": version, "kind": kind},
                "parameters": [{"name": "fieldValidation", "in": "query"}],
            }
        }
        for kind, plural in KINDS[group]
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.34.0"}, "paths": paths}


def refusal(status, reason, message):
    return status, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": message, "code": status}


def selected(made, query):
    labels = made["metadata"].get("labels", {})
    wanted = [part.split("=", 1) for part in query.get("labelSelector", "").split(",") if "=" in part]
    fields = [part.split("=", 1) for part in query.get("fieldSelector", "").split(",") if "=" in part]
    return all(labels.get(key.rstrip("!=")) == value for key, value in wanted) and all(made["metadata"]["name"] == value for key, value in fields if key == "metadata.name")
