"""Is the original site still alive? Who is asked, what an answer means, and that no network is no trouble."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import FrozenSet, Iterable, Iterator, List, Tuple

import pytest

from anvil_dr.activation import life_signs, nodes
from anvil_dr.activation.life_signs import Node
from anvil_dr.activation.prober import Prober
from anvil_dr.errors import CommandError
from anvil_dr.ports import Completed

AT = "2026-11-20T01:02:03+00:00"
FIRST, SECOND = Node("an-a05n01", "10.201.10.1", AT), Node("an-a05n02", "10.201.10.2", AT)


class Ping:
    """Stands for ping, which some addresses answer, and for the kernel's table of neighbours."""

    def __init__(self, *alive: str, neighbours: Iterable[bytes] = (b"[]",)) -> None:
        self.alive, self.neighbours = alive, list(neighbours)
        self.asked: List[str] = []

    def __call__(self, argv: Tuple[str, ...], *, timeout_seconds: float = 1, stdin: bytes = b"") -> Completed:
        if argv[0] == "ip":
            return Completed(argv, self.neighbours.pop(0) if len(self.neighbours) > 1 else self.neighbours[0], b"")
        self.asked.append(argv[-1])
        if argv[-1] not in self.alive:
            raise CommandError(argv, 1, b"", b"")
        return Completed(argv, b"", b"")


def nothing_is_own() -> FrozenSet[str]:
    return frozenset()


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def nobody_there(address: Tuple[str, int], timeout_seconds: float) -> socket.socket:
    raise TimeoutError("timed out")


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_nodes_of_a_server_and_its_own_addresses_are_asked_each_once() -> None:
    known = {"Web01": (FIRST, SECOND), "Db01": (FIRST,), "Other": (Node("x", "10.9.9.9", AT),)}
    addresses = {"Web01": ("10.255.4.10",)}
    asked = life_signs.to_probe(["Web01", "Db01"], known, addresses)
    assert asked == ("10.201.10.1", "10.201.10.2", "10.255.4.10")


def test_a_node_that_answers_keeps_its_servers_down_unless_forced() -> None:
    found = life_signs.judge(
        ["Web01", "Db01"], {"Web01": (FIRST,), "Db01": (SECOND,)}, {}, {FIRST.address: "answers on its ssh port"}
    )
    assert set(found) == {"Web01"}
    finding = found["Web01"]
    assert finding.fatal and finding.forceable
    assert finding.text == "it may still run where it came from: node an-a05n01 (10.201.10.1) answers on its ssh port"


def test_a_servers_own_address_that_answers_is_the_stronger_sign() -> None:
    answers = {FIRST.address: "answers a ping", "10.255.4.10": "answers a ping"}
    found = life_signs.judge(["Web01"], {"Web01": (FIRST,)}, {"Web01": ("10.255.4.10",)}, answers)
    assert found["Web01"].text == "its own address is alive: 10.255.4.10 answers a ping"


def test_silence_keeps_nobody_down() -> None:
    assert life_signs.judge(["Web01"], {"Web01": (FIRST,)}, {"Web01": ("10.255.4.10",)}, {}) == {}


def test_servers_of_which_nothing_can_be_asked_are_known() -> None:
    nowhere = Node("trial", "", AT)
    assert life_signs.unknown(["A", "B", "C"], {"A": (FIRST,), "B": (nowhere,)}, {}) == ("B", "C")


def test_an_ssh_port_that_answers_is_life(listener: int) -> None:
    prober = Prober(Ping(), ssh_port=listener, own=nothing_is_own)
    assert prober.answers(["127.0.0.1"]) == {"127.0.0.1": "answers on its ssh port"}


def test_a_port_that_refuses_is_life_too_because_something_refused() -> None:
    prober = Prober(Ping(), ssh_port=closed_port(), own=nothing_is_own)
    assert prober.answers(["127.0.0.1"]) == {"127.0.0.1": "refuses ssh, so something runs there"}


def test_a_machine_without_ssh_is_pinged() -> None:
    ping = Ping("10.1.1.1")
    prober = Prober(ping, own=nothing_is_own, connect=nobody_there)
    assert prober.answers(["10.1.1.1", "10.1.1.2"]) == {"10.1.1.1": "answers a ping"}
    assert sorted(ping.asked) == ["10.1.1.1", "10.1.1.2"]


def neighbour(state: str) -> bytes:
    return b'[{"dst":"10.1.1.1","dev":"br0","lladdr":"52:54:00:00:00:01","state":["%s"]}]' % state.encode()


@pytest.mark.parametrize(
    ("neighbours", "answer"),
    [
        ([neighbour("REACHABLE")], True),
        ([neighbour("DELAY"), neighbour("PROBE"), neighbour("REACHABLE")], True),
        ([neighbour("DELAY"), neighbour("PROBE"), neighbour("FAILED")], False),
        ([neighbour("PROBE")], False),
        ([neighbour("STALE")], False),
        ([b"[]"], False),
        ([b""], False),
        ([b"{}"], False),
    ],
)
def test_who_drops_ssh_and_ping_is_found_on_its_own_network(neighbours: List[bytes], answer: bool) -> None:
    prober = Prober(
        Ping(neighbours=neighbours), own=nothing_is_own, connect=nobody_there, sleep=lambda seconds: None
    )
    assert ("10.1.1.1" in prober.answers(["10.1.1.1"])) == answer


def test_this_machines_own_addresses_are_not_asked(listener: int) -> None:
    assert Prober(Ping("127.0.0.1"), ssh_port=listener).answers(["127.0.0.1"]) == {}


def test_what_is_no_address_at_all_does_not_answer() -> None:
    assert Prober(Ping(), own=nothing_is_own).answers(["256.0.0.1", "fe80::zz"]) == {}


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("10.201.10.1", "10.201.10.1"),
        ("fd00::1", "fd00::1"),
        ("127.0.0.1", ""),
        ("::1", ""),
        ("a local user", ""),
        ("this machine", ""),
    ],
)
def test_the_address_of_a_node_is_where_its_ssh_connection_came_from(peer: str, address: str) -> None:
    assert nodes.address_of(peer) == address


def test_the_last_nodes_of_a_server_are_remembered_newest_first(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    for node in (FIRST, SECOND, FIRST):
        nodes.remember(state, "Web01", node)
    assert nodes.known(state)["Web01"] == (FIRST, SECOND)
    for number in range(9):
        nodes.remember(state, "Web01", Node("n", f"10.0.0.{number}", AT))
    assert len(nodes.known(state)["Web01"]) == 8


def test_no_name_that_a_node_calls_itself_keeps_another_from_being_asked(tmp_path: Path) -> None:
    state = str(tmp_path)
    nodes.remember(state, "Web01", SECOND)
    for name in (*(f"n{number}" for number in range(9)), SECOND.name):
        nodes.remember(state, "Web01", Node(name, FIRST.address, AT))
    assert {one.address for one in nodes.known(state)["Web01"]} == {FIRST.address, SECOND.address}


def test_a_file_of_nodes_that_makes_no_sense_costs_nothing_but_itself(tmp_path: Path) -> None:
    state = str(tmp_path)
    nodes.remember(state, "Web01", FIRST)
    nodes.remember(state, "Db01", SECOND)
    (tmp_path / "nodes" / "Db01.json").write_text('{"half": ')
    assert nodes.known(state) == {"Web01": (FIRST,), "Db01": ()}
    assert nodes.known(str(tmp_path / "none")) == {}


def test_nodes_that_cannot_be_written_down_do_not_fail_the_job(tmp_path: Path) -> None:
    (tmp_path / "nodes").write_text("a file where the folder belongs")
    nodes.remember(str(tmp_path), "Web01", FIRST)
    assert nodes.known(str(tmp_path)) == {}
