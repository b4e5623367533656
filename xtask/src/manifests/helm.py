"""Real Helm (the library in the PyPI package helm-sdkpy) and Kubernetes' own schemas, for charts without a cluster.

helm.py render CHART RELEASE NAMESPACE KUBERNETES_VERSION [VALUES.yaml...]   YAML, as `helm template` orders it
helm.py install CHART RELEASE NAMESPACE KUBERNETES_VERSION [VALUES.yaml...]  JSON: notes, and each object validated strictly
helm.py lint CHART [VALUES.yaml...]                                         JSON: what `helm lint` says
helm.py objects FILE KUBERNETES_VERSION                                     JSON: the objects of a manifest, validated
helm.py yaml FILE                                                           JSON: the same in JSON
helm.py versions                                                            JSON: the Kubernetes versions it has schemas of

The library renders only what it installs. So an API server listens on loopback for the time of one call: it knows the resource
types, holds nothing, and accepts everything. Exit status: 0 done, 3 Helm or a schema refused (why is on stderr).
"""

import asyncio
import http.server
import json
import os
import shutil
import sys
import tempfile
import threading

import helm_sdkpy
import kubernetes_validate
import yaml

# What the chart may contain: kind, plural, whether in a namespace.
TYPES = {
    "v1": [("Namespace", "namespaces", False), ("ConfigMap", "configmaps", True), ("Secret", "secrets", True),
           ("ServiceAccount", "serviceaccounts", True)],
    "apps/v1": [("DaemonSet", "daemonsets", True)],
    "rbac.authorization.k8s.io/v1": [("ClusterRole", "clusterroles", False),
                                     ("ClusterRoleBinding", "clusterrolebindings", False)],
    "scheduling.k8s.io/v1": [("PriorityClass", "priorityclasses", False)],
    "monitoring.coreos.com/v1": [("PodMonitor", "podmonitors", True)],
}
# Kinds that Kubernetes itself has no schema of.
FOREIGN = {"PodMonitor"}


def resources(group):
    rows = [{"name": plural, "singularName": "", "namespaced": namespaced, "kind": kind,
             "verbs": ["create", "get", "list", "patch"]} for kind, plural, namespaced in TYPES[group]]
    return {"kind": "APIResourceList", "groupVersion": group, "resources": rows}


def groups():
    def group(full):
        name, version = full.split("/")
        version = {"groupVersion": full, "version": version}
        return {"name": name, "versions": [version], "preferredVersion": version}
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group(g) for g in TYPES if "/" in g]}


def server(version):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self, status, body, kind="application/json"):
            body = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0].strip("/")
            major, minor = version.split(".")[:2]
            if path == "version":
                self.answer(200, {"major": major, "minor": minor, "gitVersion": f"v{version}"})
            elif path == "api":
                self.answer(200, {"kind": "APIVersions", "versions": ["v1"]})
            elif path == "apis":
                self.answer(200, groups())
            elif path == "api/v1":
                self.answer(200, resources("v1"))
            elif path.removeprefix("apis/") in TYPES:
                self.answer(200, resources(path.removeprefix("apis/")))
            elif path.endswith("/secrets"):
                self.answer(200, {"kind": "SecretList", "apiVersion": "v1", "metadata": {}, "items": []})
            else:
                gone = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}
                self.answer(404, gone)

        def accept(self):
            # Objects come as JSON or protobuf, and go back as they came.
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(201 if self.command == "POST" else 200, body, self.headers["Content-Type"])

        do_POST = do_PUT = do_PATCH = accept

        def log_message(self, *_):
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    return listening


def merged(files):
    """What helm makes of several --values: maps are merged, everything else replaced."""
    def merge(into, more):
        for key, value in more.items():
            if isinstance(value, dict) and isinstance(into.get(key), dict):
                merge(into[key], value)
            else:
                into[key] = value
        return into
    values = {}
    for name in files:
        with open(name) as file:
            merge(values, yaml.safe_load(file) or {})
    return values


def install(chart, release, namespace, version, files):
    listening = server(version)
    kubeconfig = yaml.safe_dump({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{listening.server_port}"}}],
        "users": [{"name": "c", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}]})
    configuration = helm_sdkpy.Configuration(namespace=namespace, kubeconfig=kubeconfig)
    run = helm_sdkpy.Install(configuration).run(release, chart, values=merged(files), wait=False, timeout=60)
    made = asyncio.run(run)
    listening.shutdown()
    return made


def validated(manifest, version):
    objects = [one for one in yaml.safe_load_all(manifest) if one]
    for one in objects:
        if one["kind"] not in FOREIGN:
            kubernetes_validate.validate(one, version, strict=True)
    return objects


def lint(chart, files):
    """Lints with values: the library takes none, so a copy of the chart gets them as its own."""
    with tempfile.TemporaryDirectory() as scratch:
        copy = os.path.join(scratch, os.path.basename(os.path.normpath(chart)))
        shutil.copytree(chart, copy)
        with open(os.path.join(copy, "values.yaml"), "r+") as file:
            values = yaml.safe_load(file)
        own = os.path.join(scratch, "own.yaml")
        with open(own, "w") as file:
            yaml.safe_dump(values, file)
        with open(os.path.join(copy, "values.yaml"), "w") as file:
            yaml.safe_dump(merged([own, *files]), file)
        return asyncio.run(helm_sdkpy.Lint(helm_sdkpy.Configuration(namespace="linted")).run(copy))


def main(arguments):
    match arguments:
        case ["render", chart, release, namespace, version, *files]:
            print(install(chart, release, namespace, version, files)["manifest"].strip())
        case ["install", chart, release, namespace, version, *files]:
            made = install(chart, release, namespace, version, files)
            print(json.dumps({"objects": validated(made["manifest"], version), "made": made}))
        case ["lint", chart, *files]:
            print(json.dumps(lint(chart, files)))
        case ["objects", file, version]:
            with open(file) as text:
                print(json.dumps(validated(text.read(), version)))
        case ["yaml", file]:
            with open(file) as text:
                print(json.dumps(yaml.safe_load(text)))
        case ["versions"]:
            print(json.dumps(list(dict.fromkeys(kubernetes_validate.utils.all_versions()))))
        case _:
            sys.exit(__doc__)


try:
    main(sys.argv[1:])
except (helm_sdkpy.HelmError, kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as refused:
    print(getattr(refused, "message", None) or refused, file=sys.stderr)
    sys.exit(3)
