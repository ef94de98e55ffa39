"""What people see: tables and lists on a terminal. Nothing that came from outside can move the cursor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from caa.age import age

SHORT_ID = 12
# Where output is read by a program or a pager, lines are never folded.
_UNFOLDED = 10_000


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows under headings."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _UNFOLDED
    grid = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        grid.add_column(column, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_plain(cell)) for cell in row))
    console.print(grid)


def sandbox_table(sandboxes: Iterable[dict[str, Any]], now: datetime) -> None:
    """One line a sandbox."""
    table(
        ("SANDBOX", "STATE", "POD", "NODE", "INSTANCE", "TYPE", "ADDRESS", "AGE"), [_row(one, now) for one in sandboxes]
    )


def sandbox_details(sandbox: dict[str, Any], events: Iterable[dict[str, Any]]) -> None:
    """Everything about one, and what happened to it."""
    failure, instance = sandbox["failure"], sandbox["instance"]
    rows = [
        ("Sandbox", sandbox["id"]),
        ("State", f"{sandbox['state']} since {_time(sandbox['changed_at'])}"),
        ("Pod", f"{sandbox['pod']['namespace']}/{sandbox['pod']['name']}"),
        ("Node", f"{sandbox['node']} in cluster {sandbox['cluster']}"),
        ("Created", _time(sandbox["created_at"])),
        ("Agent socket", sandbox["agent_socket_path"]),
        ("Network", sandbox["network_namespace_path"] or "the host's"),
        ("Attempts", str(sandbox["attempts"])),
    ]
    if failure:
        rows.append(("Failure", f"{failure['reason']}: {failure['detail']}"))
    if instance:
        placed = f"{instance['type']} in {instance['zone'] or 'no zone'}, {instance['market']}"
        rows.append(("Instance", f"{instance['id']} ({instance['name']})"))
        rows.append(("Placed", placed))
        rows.append(("Address", instance["address"] or "none yet"))
    table(("", ""), rows)
    happened = [(_time(event["at"]), event["kind"], event["message"]) for event in events]
    if happened:
        print()
        table(("WHEN", "EVENT", ""), happened)


def sizing_table(explained: dict[str, Any]) -> None:
    """What a pod would get, and what became of each offering."""
    chosen = explained["chosen"]
    rows = [("Rule", f"{explained['rule']}: {explained['rule_text']}")]
    rows += [("Ignored", sentence) for sentence in explained["ignored"]]
    rows.append(("Image", explained["image"]))
    if chosen:
        place = f"{chosen['type']} in {chosen['zone'] or 'no zone'}, {chosen['market']}"
        rows.append(("Launched", f"{place}, with {chosen['vcpus']} vCPUs and {chosen['memory_mib']} MiB"))
    else:
        rows.append(("Launched", "nothing"))
    table(("", ""), rows)
    print()
    columns = ("ORDER", "TYPE", "ZONE", "MARKET", "VCPUS", "MIB", "GPUS", "PRICE", "WHY NOT")
    table(columns, [_offering_row(one) for one in explained["offerings"]])


def metadata_table(seen: dict[str, Any]) -> None:
    """What a pod sees of its VM's metadata."""
    who = {"pod": "this service", "vm": "the cloud's own service, through the VM", "off": "nobody"}[seen["mode"]]
    now = "" if seen["served"] or seen["mode"] != "pod" else " (not at the moment)"
    table(("", ""), [("Answered by", who + now), ("Like", seen["dialect"])])
    if seen["answers"]:
        print()
        table(("PATH", "ANSWER"), list(_lines("", seen["answers"])))


def _lines(path: str, found: object) -> Iterator[tuple[str, str]]:
    """Each value with its path; a text's lines beside each other."""
    if isinstance(found, dict | list):
        for name, below in found.items() if isinstance(found, dict) else enumerate(found):
            yield from _lines(f"{path}/{name}" if path else str(name), below)
    else:
        yield path, " ".join(line.strip() for line in str(found).splitlines())


def audit_table(audit: dict[str, Any], *, everything: bool) -> None:
    """What differs, or `everything`, and the count of each verdict."""
    quiet = () if everything else ("match", "pending")
    shown = [one for one in audit["findings"] if one["verdict"] not in quiet]
    if shown:
        table(("VERDICT", "INSTANCE", "NAME", "POD", "SANDBOX", ""), [_finding_row(one) for one in shown])
        print()
    print(", ".join(f"{count} {verdict}" for verdict, count in audit["counts"].items()))


def _finding_row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        one["verdict"],
        one["instance_id"] or "-",
        one["name"] or "-",
        f"{one['pod']['namespace']}/{one['pod']['name']}" if one["pod"] else "-",
        one["sandbox_id"][:SHORT_ID] or "-",
        one["message"],
    )


def _offering_row(one: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(one["order"] or "-"),
        one["type"],
        one["zone"] or "-",
        one["market"],
        str(one["vcpus"]),
        str(one["memory_mib"]),
        f"{one['gpus']} {one['gpu_model']}".strip() if one["gpus"] else "-",
        "-" if one["price"] is None else f"{one['price']:g}",
        one["refused"] or one["passed_over"] or "",
    )


def _row(sandbox: dict[str, Any], now: datetime) -> tuple[str, ...]:
    instance = sandbox["instance"] or {}
    state = sandbox["state"] + (f" ({sandbox['failure']['reason']})" if sandbox["failure"] else "")
    return (
        sandbox["id"][:SHORT_ID],
        state,
        f"{sandbox['pod']['namespace']}/{sandbox['pod']['name']}",
        sandbox["node"],
        instance.get("id") or "-",
        instance.get("type") or "-",
        instance.get("address") or "-",
        age((now - datetime.fromisoformat(sandbox["created_at"])).total_seconds()),
    )


def _time(text: str) -> str:
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _plain(text: str) -> str:
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
