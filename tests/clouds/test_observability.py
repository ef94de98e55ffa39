"""The dashboard and the alert rules, in a real Prometheus that scrapes a real service; and the table of metrics."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import yaml

from caa.sizing import MACHINE_TYPE
from tests.clouds.aws.account import Account
from tests.clouds.faultproxy import FaultProxy
from tests.clouds.podworld import pod_service
from tests.lab.ports import held_port
from tests.lab.service import ServiceProcess, new_id
from tests.ledger.postgresql import Server

ROOT = Path(__file__).parents[2]
RULES = ROOT / "docker" / "observability" / "alerts.yaml"
DASHBOARD = ROOT / "docker" / "observability" / "dashboard.json"
PAGE = ROOT / "docs" / "observability.md"
# Prometheus is up within a second or two, and scrapes once a second here.
SCRAPED_SECONDS = 60.0
# A rate needs two samples of the window.
RANGE = "30s"
GROUPING = r"\b(?:by|on|group_left) \(([^)]*)\)"


@contextmanager
def metrics_over_tcp(service: ServiceProcess) -> Iterator[int]:
    """Prometheus scrapes no unix sockets: the port that passes /metrics on."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with service.rest(timeout=10) as client:
                answer = client.get("/metrics", headers={"Accept": self.headers.get("Accept", "")})
            self.send_response(answer.status_code)
            self.send_header("Content-Type", answer.headers["content-type"])
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


class Prometheus:
    """The real one, with the alert rules."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API answers. Raises AssertionError for an expression that it does not understand."""
        answer = self._http.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def value(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        return list(self.ask("query", query=expression)["result"])

    def wait_for(self, expression: str, what: str = "") -> None:
        """Until it has any. `what` is told when it does not."""
        deadline = time.monotonic() + SCRAPED_SECONDS
        while True:
            try:
                if self.value(expression):
                    return
            except (httpx.TransportError, AssertionError):  # it is starting
                pass
            assert time.monotonic() < deadline, f"{what} nothing for {expression}"
            time.sleep(0.2)


@contextmanager
def prometheus(directory: Path, target: int) -> Iterator[Prometheus]:
    """Scrapes the port once a second as job "caa"."""
    port = held_port()
    configuration = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "caa", "static_configs": [{"targets": [f"127.0.0.1:{target}"]}]}],
    }
    (directory / "prometheus.yaml").write_text(yaml.safe_dump(configuration))
    command = [
        "prometheus",
        f"--config.file={directory / 'prometheus.yaml'}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    process = subprocess.Popen(command)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as http:
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(60)


def expressions() -> dict[str, str]:
    """Those of the dashboard, by panel and letter, as Grafana would send them."""
    found = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$instance", ".*").replace("$__rate_interval", RANGE)
            found[f"{panel['title']} {target['refId']}"] = text
    return found


def selectors(expression: str) -> set[str]:
    """The series that an expression picks, with what it asks of their labels."""
    return set(
        re.findall(r"\b(?:caa_\w+|up)\b(?:\{[^}]*\})?", re.sub(r"\b(?:by|on|group_left) \([^)]*\)", "", expression))
    )


def grouped(expression: str) -> set[str]:
    """The labels that an expression groups or joins by."""
    return {
        word
        for group in re.findall(r"\b(?:by|on|group_left) \(([^)]*)\)", expression)
        for word in re.split(r",\s*", group)
    }


def test_every_panel_shows_something_every_rule_is_about_series_that_are_there_and_every_metric_is_documented(
    account: Account, proxy: FaultProxy, tmp_path: Path
) -> None:
    (first, *_) = account.seed.subnets
    account.emulator.capacity({"zone": first})
    with (
        pod_service(account, proxy.url, PEERPODS_LIMIT_PER_NODE="5") as service,
        metrics_over_tcp(service) as port,
        prometheus(tmp_path, port) as here,
    ):
        here.wait_for("caa_ready == 1")
        account.emulator.limits({"RunInstances": (1, 1.0)})  # the second is throttled
        ran = new_id()
        service.create(ran, "web")
        service.start_sandbox(ran)
        failed = new_id()
        service.create(failed, "wrong", {MACHINE_TYPE: "x9.huge"})
        assert service.begin_start(failed).status_code >= 400
        service.stop_sandbox(ran)
        service.wait_for_state(ran, {"stopped"}, 60)
        here.wait_for("caa_terminate_seconds_count > 0")
        # Two samples at least of the last that changed.
        here.wait_for(f"count_over_time(caa_terminate_seconds_count[{RANGE}]) > 2")
        for panel, expression in expressions().items():
            here.wait_for(expression, panel)  # a scrape that came too late leaves a moment without values
        rules = here.ask("rules")["groups"][0]["rules"]
        assert [(rule["name"], rule.get("lastError", "")) for rule in rules if rule["health"] == "err"] == []
        asked = [*expressions().values(), *(rule["query"] for rule in rules)]
        for expression in asked:
            for selector in selectors(expression):
                labels = [set(one) for one in here.ask("series", **{"match[]": selector})]
                assert labels, f"no series is {selector}"
        labels_of_all = {label for one in here.ask("series", **{"match[]": '{job="caa"}'}) for label in one}
        assert set().union(*map(grouped, asked)) <= labels_of_all
        with service.rest() as client:
            lines = client.get("/metrics").text
        told = re.findall(r"^# HELP (caa_\w+) (.*)$", lines, re.MULTILINE)
        written = re.findall(r"^\| `(caa_\w+)` \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
        assert dict(written) == {name: text for name, text in told if not name.endswith("_created")}


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    page = PAGE.read_text()
    rules = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    for rule in rules:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"].endswith(".")
        path, _, heading = rule["annotations"]["runbook_url"].partition("#")
        assert ROOT / path == PAGE
        assert heading == rule["alert"].lower()
        assert f"### {rule['alert']}\n" in page


def test_a_ledger_that_is_away_is_told_of_by_what_needs_none(
    account: Account, proxy: FaultProxy, postgresql: Server, postgresql_ledger: str
) -> None:
    with pod_service(account, proxy.url, CAA_LEDGER_URL=postgresql_ledger) as service:
        assert wait_for_ledger(service, 1)['caa_sandboxes{state="running"}'] == 0
        postgresql.stop()
        try:
            without = wait_for_ledger(service, 0)
        finally:
            postgresql.start()
        assert without['caa_cloud_calls_total{api="list",outcome="ok",provider="aws"}'] > 0
        assert not [name for name in without if name.startswith("caa_sandboxes")]
        assert wait_for_ledger(service, 1)['caa_sandboxes{state="running"}'] == 0


def wait_for_ledger(service: ServiceProcess, state: int) -> dict[str, float]:
    """What /metrics answers once the ledger can be used, or cannot; every answer is one."""
    deadline = time.monotonic() + 60
    while True:
        with service.rest(timeout=30) as client:
            answer = client.get("/metrics")
        assert answer.status_code == 200, answer.text
        rows = (line.rpartition(" ") for line in answer.text.splitlines() if line.startswith("caa_"))
        found = {name: float(value) for name, _, value in rows}
        if found["caa_ledger_available"] == state:
            return found
        assert time.monotonic() < deadline
        time.sleep(0.2)
