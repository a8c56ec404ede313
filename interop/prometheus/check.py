#!/usr/bin/env python3
"""Asks a real Prometheus everything that the dashboard and the alerts ask.

    interop/prometheus/check.py [path of the program wardkeep]

It scrapes a real supervisor whose node has wards that fail, one by ending and one by going silent. The collector, which
makes metrics of traces, is not at hand everywhere: of its metrics a page with their names is scraped instead. Every
expression must have an answer that is a number. Without Prometheus it says so, and passes unless WARDKEEP_CI=1.
"""

import http.server
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
OBS = os.path.join(ROOT, "deploy", "obs")
DASHBOARD = os.path.join(OBS, "grafana", "dashboards", "wardkeep.json")
PATIENCE = 90

# Ready at once, and silent after one pulse.
SILENT = (
    "import os,socket,time;"
    "s=socket.socket(socket.AF_UNIX,socket.SOCK_DGRAM);"
    "to=os.environ['NOTIFY_SOCKET'].replace('@','\\0',1);"
    "s.sendto(b'READY=1',to);"
    "s.sendto(b'WATCHDOG=1',to);"
    "time.sleep(3600)"
)

NODE = """
name = "n"

[[group]]
name = "trouble"
intensity = 1000
backoff_first = "200ms"
backoff_max = "500ms"

[[ward]]
name = "calm"
command = ["sleep", "3600"]

[[ward]]
name = "ends"
command = ["sh", "-c", "sleep 1; exit 3"]
group = "trouble"

[[ward]]
name = "silent"
command = ["python3", "-c", "{silent}"]
notify = true
pulse_timeout = "1s"
group = "trouble"
"""


class Spans(http.server.BaseHTTPRequestHandler):
    """Metrics as the collector names them (deploy/obs/collector.yaml)."""

    def do_GET(self):
        count = int(time.monotonic() * 10) % 10_000_000
        kind = 'service_name="wardkeep-node",span_name="s/M",span_kind="SPAN_KIND_SERVER"'
        lines = ["# TYPE wardkeep_span_calls_total counter"]
        for code in ("UNSET", "ERROR"):
            lines.append(f'wardkeep_span_calls_total{{{kind},status_code="STATUS_CODE_{code}"}} {count}')
        lines.append("# TYPE wardkeep_span_duration_seconds histogram")
        for bound in ("0.01", "0.1", "+Inf"):
            lines.append(f'wardkeep_span_duration_seconds_bucket{{{kind},le="{bound}"}} {count}')
        lines.append(f"wardkeep_span_duration_seconds_sum{{{kind}}} {count / 100}")
        lines.append(f"wardkeep_span_duration_seconds_count{{{kind}}} {count}")
        body = ("\n".join(lines) + "\n").encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def fail(text):
    print(text, file=sys.stderr)
    sys.exit(1)


def start(children, command, log):
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=open(log, "w"))
    children.append(child)
    return child


def said(log, pattern):
    """Waits until this is in the log."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        with open(log) as text:
            found = re.search(pattern, text.read())
        if found:
            return found.group(1)
        time.sleep(0.05)
    with open(log) as text:
        fail(f"{os.path.basename(log)} never says {pattern!r}:\n{text.read()[-2000:]}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def expressions():
    """All that the dashboard asks, with the panel that asks it."""
    with open(DASHBOARD) as text:
        dashboard = json.load(text)
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "20s")


def ask(address, path, **query):
    url = f"http://{address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def numbers(address, expression):
    try:
        found = ask(address, "query", query=expression)["result"]
    except OSError:
        return []
    return [value for value in (float(series["value"][1]) for series in found) if not math.isnan(value)]


def check(directory, program, children):
    path = lambda name: os.path.join(directory, name)
    for command in (["config", "--syntax-only", os.path.join(OBS, "prometheus.yaml")],
                    ["rules", os.path.join(OBS, "alerts.yaml")]):
        subprocess.run(["promtool", "check", *command], check=True, stdout=subprocess.DEVNULL)

    spans = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Spans)
    threading.Thread(target=spans.serve_forever, daemon=True).start()

    start(children, [program, "serve", "supervisor", "--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0",
                     "--data-dir", path("data")], path("supervisor.log"))
    supervisor = said(path("supervisor.log"), r"supervisor up.*address=(\S+)")
    metrics = said(path("supervisor.log"), r"metrics at http://(\S+)/metrics")
    with open(path("node.toml"), "w") as text:
        text.write(NODE.replace("{silent}", SILENT.replace("\\", "\\\\")))
    start(children, [program, "serve", "node", "--config", path("node.toml"), "--listen", "127.0.0.1:0",
                     "--supervisor", f"http://{supervisor}"], path("node.log"))
    said(path("node.log"), r"(attends the supervisor)")

    with open(os.path.join(OBS, "prometheus.yaml")) as text:
        config = text.read()
    for there, here in (("supervisor:7480", metrics), ("collector:8889", "127.0.0.1:%d" % spans.server_port),
                        ("/etc/prometheus/alerts.yaml", os.path.join(OBS, "alerts.yaml")),
                        ("scrape_interval: 5s", "scrape_interval: 1s"), ("scrape_timeout: 4s", "scrape_timeout: 1s")):
        assert there in config, there
        config = config.replace(there, here)
    with open(path("prometheus.yaml"), "w") as text:
        text.write(config.replace("global:\n", "global:\n  evaluation_interval: 1s\n"))
    subprocess.run(["promtool", "check", "config", path("prometheus.yaml")], check=True, stdout=subprocess.DEVNULL)
    address = f"127.0.0.1:{free_port()}"
    start(children, ["prometheus", f"--config.file={path('prometheus.yaml')}", f"--storage.tsdb.path={path('tsdb')}",
                     f"--web.listen-address={address}"], path("prometheus.log"))

    asked = list(expressions())
    unanswered = dict.fromkeys(asked)
    until = time.monotonic() + PATIENCE
    while unanswered and time.monotonic() < until:
        time.sleep(1)
        for question in list(unanswered):
            if numbers(address, question[1]):
                del unanswered[question]
    if unanswered:
        fail("no data: " + "; ".join(f"{panel}: {expression}" for panel, expression in unanswered))
    for expression in ('sum(wardkeep_restarts_total{of="ward",reason="crashed"}) > 0',
                       'sum(wardkeep_restarts_total{of="ward",reason="stalled"}) > 0',
                       'wardkeep_heal_seconds_count{of="ward"} > 0',
                       'wardkeep_detection_seconds_count{verdict="stalled"} > 0'):
        while not numbers(address, expression):
            if time.monotonic() > until:
                fail(f"never true: {expression}")
            time.sleep(0.5)
    rules = [rule for group in ask(address, "rules")["groups"] for rule in group["rules"]]
    while any(rule["health"] == "unknown" for rule in rules) and time.monotonic() < until:
        time.sleep(0.5)
        rules = [rule for group in ask(address, "rules")["groups"] for rule in group["rules"]]
    bad = [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] != "ok"]
    if bad or not rules:
        fail("alerts that cannot be judged: " + "; ".join(bad))
    print(f"{len(asked)} expressions of the dashboard and {len(rules)} alerts: all answered")


def main():
    missing = [tool for tool in ("prometheus", "promtool") if not shutil.which(tool)]
    if missing:
        text = f"not installed: {', '.join(missing)} (Debian: prometheus)"
        if os.environ.get("WARDKEEP_CI") == "1":
            fail(text)
        print(f"skipped: {text}")
        return
    default = os.path.join(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")), "debug", "wardkeep")
    program = sys.argv[1] if len(sys.argv) > 1 else default
    if not os.access(program, os.X_OK):
        fail(f"{program} is not there: cargo build --bin wardkeep")
    for key in [key for key in os.environ if key.startswith(("WARDKEEP_", "OTEL_")) and key != "WARDKEEP_CI_RUN"]:
        del os.environ[key]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    children = []
    with tempfile.TemporaryDirectory() as directory:
        try:
            check(directory, program, children)
        finally:
            for child in reversed(children):
                child.terminate()
            for child in children:
                try:
                    child.wait(20)
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()


main()
