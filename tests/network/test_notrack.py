"""The tunnel's rules, with other processes and other rules beside them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from caa.podnetwork.notrack import ensure_notrack, remove_notrack
from tests.network.topology import Topology, run, within

SOURCE = Path(__file__).parents[2]
PROCESSES, ROUNDS = 3, 12
PROGRAM = """
import sys
from caa.podnetwork.notrack import ensure_notrack, remove_notrack
first = int(sys.argv[1])
for tunnel_id in range(first, first + int(sys.argv[2])):
    ensure_notrack(tunnel_id, "10.10.1.2", 4789)
    remove_notrack(tunnel_id)
"""


def save(topology: Topology) -> list[str]:
    text = run("ip", "netns", "exec", topology.worker, "iptables-save", "-t", "raw")
    return [line for line in text.splitlines() if line.startswith(("-A", ":peerpod"))]


def test_an_old_and_a_new_service_may_change_the_table_at_the_same_time(topology: Topology) -> None:
    command = ("ip", "netns", "exec", topology.worker, sys.executable, "-c", PROGRAM)
    running = [
        subprocess.Popen([*command, str(560000 + 100 * number), str(ROUNDS)], cwd=SOURCE, stderr=subprocess.PIPE)
        for number in range(PROCESSES)
    ]
    complaints = [process.communicate(timeout=60)[1].decode() for process in running]
    assert complaints == [""] * PROCESSES
    assert [process.returncode for process in running] == [0] * PROCESSES
    assert save(topology) == []


def test_a_rule_that_is_there_twice_or_leads_elsewhere_is_put_right(topology: Topology) -> None:
    def ensure() -> None:
        ensure_notrack(555002, "10.10.1.2", 4789)

    within(topology.worker, ensure)
    right = save(topology)
    iptables = ("ip", "netns", "exec", topology.worker, "iptables", "-t", "raw")
    for line in right:
        if "-A peerpod" in line:
            rule = line.replace('"peerpod [vni:555002]"', "peerpod@").split()
            run(*iptables, *(word.replace("peerpod@", "peerpod [vni:555002]") for word in rule))
    comment = ("-m", "comment", "--comment", "peerpod [vni:555002]")
    run(*iptables, "-A", "peerpod-OUTPUT", "-d", "10.10.1.99", "-p", "udp", *comment, "-j", "NOTRACK")
    assert len(save(topology)) == len(right) + 3
    within(topology.worker, ensure)
    assert sorted(save(topology)) == sorted(right)
    within(topology.worker, lambda: remove_notrack(555002))
    assert save(topology) == []


def test_a_tunnel_whose_id_begins_alike_is_another_one(topology: Topology) -> None:
    def both() -> None:
        ensure_notrack(555001, "10.10.1.2", 4789)
        ensure_notrack(5550010, "10.10.1.3", 4789)
        remove_notrack(555001)

    within(topology.worker, both)
    assert sum("5550010" in line for line in save(topology)) == 2
    assert not any("vni:555001]" in line for line in save(topology))


def test_a_comment_of_another_program_may_be_anything(topology: Topology) -> None:
    iptables = ("ip", "netns", "exec", topology.worker, "iptables", "-t", "raw")
    subprocess.run(
        [*iptables, "-A", "OUTPUT", "-m", "comment", "--comment", b"\xff it's \"odd", "-j", "ACCEPT"], check=True
    )
    before = subprocess.run([*iptables, "-S"], capture_output=True, check=True).stdout
    within(topology.worker, lambda: ensure_notrack(555002, "10.10.1.2", 4789))
    within(topology.worker, lambda: remove_notrack(555002))
    assert subprocess.run([*iptables, "-S"], capture_output=True, check=True).stdout == before
