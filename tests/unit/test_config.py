"""The configuration: what a tired admin can get wrong is named with its key and line, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil_dr import config
from anvil_dr.config import ActivationConfig, ServerActivation, StoreConfig
from anvil_dr.errors import ConfigError, UsageError
from anvil_dr.wire.protocol import Welcome, decode

FULL = """\
name: dr01
store: lvm:dr01_vg0,dr01_vg1
copies: 3
min_set_age: 12h
verify: read-back
use_cache: false
require_cache: false
cache_signature: .other
definitions: /srv/definitions/
state: /srv/state
runtime: /run/dr
bandwidth_limit: 10M
activation:
  connect: qemu+ssh://root@host/system
  servers:
    Web01: {start_after: Dns01, start_delay: 30, addresses: [10.255.4.10, "fd00::4:10"]}
    Db01:
      start_after: [Dns01, Web01]
    Dns01:
"""


def refusal(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.parse(text, "/etc/t.yaml")
    return caught.value


def test_every_key_of_the_specification_is_read() -> None:
    found = config.parse(FULL, "t.yaml")
    assert found == config.Config(
        name="dr01",
        store=StoreConfig("lvm", ("dr01_vg0", "dr01_vg1")),
        copies=3,
        min_set_age=12 * 3600,
        verify="read-back",
        use_cache=False,
        require_cache=False,
        cache_signature=".other",
        definitions="/srv/definitions",
        state="/srv/state",
        runtime="/run/dr",
        bandwidth_limit=10 * 1024 * 1024,
        activation=ActivationConfig(
            "qemu+ssh://root@host/system",
            {
                "Web01": ServerActivation(("Dns01",), 30, ("10.255.4.10", "fd00::4:10")),
                "Db01": ServerActivation(("Dns01", "Web01"), 0, ()),
                "Dns01": ServerActivation(),
            },
        ),
    )
    assert found.socket == "/run/dr/target.sock"


def test_a_store_alone_is_enough_and_the_rest_has_the_documented_defaults() -> None:
    found = config.parse("store: fs:/srv/dr", "t.yaml")
    assert found.name
    assert (found.copies, found.use_cache, found.require_cache, found.cache_signature) == (2, True, False, ".dr_cache")
    assert (found.definitions, found.state, found.runtime) == (
        "/shared/definitions",
        "/var/lib/anvil-dr",
        "/run/anvil-dr",
    )
    assert (found.bandwidth_limit, found.min_set_age, found.verify) == (0, 0, "none")
    assert found.activation == ActivationConfig("qemu:///system", {})


def test_the_example_that_is_shipped_shows_every_key_with_its_default() -> None:
    path = Path(__file__).parents[2] / "etc" / "target.yaml"
    assert config.load(str(path)) == config.parse("store: fs:/srv/dr", "t.yaml")
    text = path.read_text()
    assert all(f"{key}:" in text for key in (*config.Config.__dataclass_fields__, "start_after", "addresses"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fs:/srv/dr", StoreConfig("fs", ("/srv/dr",))),
        ("fs:/srv//dr/./", StoreConfig("fs", ("/srv/dr",))),
        ("lvm:vg0", StoreConfig("lvm", ("vg0",))),
        ("vg:vg0, vg-1", StoreConfig("lvm", ("vg0", "vg-1"))),
    ],
)
def test_stores_are_told_apart(text: str, expected: StoreConfig) -> None:
    assert config.parse(f"store: '{text}'", "t.yaml").store == expected


@pytest.mark.parametrize(
    "text",
    ["fs:", "fs:srv", "fs:/", "fs:/a/../b", "lvm:", "lvm:a,,b", "lvm:a,a", "lvm:-a", "lvm:..", "lvm:a/b", "x:/y", "/z"],
)
def test_an_impossible_store_is_refused(text: str) -> None:
    error = refusal(f"name: dr01\nstore: '{text}'")
    assert (error.key, error.line) == ("store", 2)


@pytest.mark.parametrize(
    ("text", "key", "line", "says"),
    [
        ("store: fs:/x\ncopys: 2", "copys", 2, "did you mean copies?"),
        ("store: fs:/x\nuse-cache: true", "use-cache", 2, "did you mean use_cache?"),
        ("store: fs:/x\nzzz: 2", "zzz", 2, "unknown key"),
        ("store: fs:/x\n\ncopies: 0", "copies", 3, "from 1 to"),
        ("store: fs:/x\ncopies: -1", "copies", 2, "from 1 to"),
        ("store: fs:/x\ncopies: two", "copies", 2, "whole number"),
        ("store: fs:/x\ncopies: '2'", "copies", 2, "whole number"),
        ("store: fs:/x\ncopies: 2.5", "copies", 2, "whole number"),
        ("store: fs:/x\ncopies: 010", "copies", 2, "whole number"),
        ("store: fs:/x\ncopies: 1:30", "copies", 2, "whole number"),
        ("store: fs:/x\ncopies: " + "9" * 5000, "copies", 2, "whole number"),
        ("store: fs:/x\ncopies:", "copies", 2, "nothing"),
        ("store: fs:/x\ncopies: [1]", "copies", 2, "a list"),
        ("store: fs:/x\nuse_cache: 1", "use_cache", 2, "true or false"),
        ("store: fs:/x\nuse_cache: maybe", "use_cache", 2, "true or false"),
        ("store: fs:/x\nuse_cache: !!bool maybe", "use_cache", 2, "true or false"),
        ("store: fs:/x\nrequire_cache: true\nuse_cache: false", "require_cache", 2, "use_cache is false"),
        ("store: fs:/x\nname: on", "name", 2, "in quotes"),
        ("store: fs:/x\nname: ''", "name", 2, "empty"),
        ('store: fs:/x\nname: "a\\u0007"', "name", 2, "control characters"),
        ("store: fs:/x\ncache_signature: a/b", "cache_signature", 2, "without a path"),
        ("store: fs:/x\ncache_signature: ..", "cache_signature", 2, "without a path"),
        ("store: fs:/x\ndefinitions: shared", "definitions", 2, "absolute"),
        ("store: fs:/x\nstate: /var/../etc", "state", 2, "'..'"),
        ("store: fs:/x\nruntime: /", "runtime", 2, "root directory"),
        ("store: fs:/x\nruntime: /run/" + "x" * 100, "runtime", 2, "too long"),
        ("store: fs:/x\nrequire_cache: true\ncopies: 2", "require_cache", 2, "does nothing with copies: 2"),
        ("store: fs:/x\nrequire_cache: true", "require_cache", 2, "does nothing with copies: 2"),
        ("store: fs:/x\ncopies: 1\nmin_set_age: 12h", "min_set_age", 3, "does nothing with copies: 1"),
        ("store: fs:/x\nstate: /x", "state", 2, "must not lie in the store's directory (/x)"),
        ("store: fs:/x\nstate: /x/state", "state", 2, "must not lie in the store's directory (/x)"),
        ("store: fs:/x\nruntime: /x/run", "runtime", 2, "must not lie in the store's directory (/x)"),
        ("store: fs:/var/lib", "store", 1, "(/var/lib); choose another folder for state"),
        ("store: fs:/x\nactivation:\n  overlays: /x", "activation.overlays", 3, "not be the store's own directory"),
        ("store: fs:/x\nmin_set_age: -1", "min_set_age", 2, "not a time"),
        ("store: fs:/x\nmin_set_age: 2w", "min_set_age", 2, "such as 12h"),
        ("store: fs:/x\nmin_set_age: soon", "min_set_age", 2, "not a time"),
        ("store: fs:/x\nverify: readback", "verify", 2, "none or read-back"),
        ("store: fs:/x\nverify: true", "verify", 2, "must be text"),
        ("store: fs:/x\nbandwidth_limit: -1", "bandwidth_limit", 2, "not a rate"),
        ("store: fs:/x\nbandwidth_limit: 10MB", "bandwidth_limit", 2, "not a rate"),
        ("store: fs:/x\nbandwidth_limit: true", "bandwidth_limit", 2, "number or text"),
        ("store: fs:/x\nactivation: yes", "activation", 2, "group"),
        ("store: fs:/x\nactivation:\n  conect: qemu:///system", "activation.conect", 3, "did you mean connect?"),
        ("store: fs:/x\nactivation:\n  connect: qemu", "activation.connect", 3, "libvirt URI"),
        (
            "store: fs:/x\nactivation:\n servers:\n  a/b:\n   start_delay: 1",
            "activation.servers.a/b",
            4,
            "has '/' in it",
        ),
        ("store: fs:/x\nactivation: {servers: {no: {}}}", "activation.servers.no", 2, "in quotes"),
        (
            "store: fs:/x\nactivation:\n servers:\n  W:\n   start_delay: -1",
            "activation.servers.W.start_delay",
            5,
            "from 0",
        ),
        (
            "store: fs:/x\nactivation:\n servers:\n  W:\n   addresses: [web01]",
            "activation.servers.W.addresses",
            5,
            "not an IP address",
        ),
        (
            "store: fs:/x\nactivation:\n servers:\n  W:\n   start_after: [A, A]",
            "activation.servers.W.start_after",
            5,
            "twice",
        ),
        (
            "store: fs:/x\nactivation:\n servers:\n  W:\n   start_after: W",
            "activation.servers.W.start_after",
            5,
            "wait for itself",
        ),
        ("store: fs:/x\ncopies: 2\ncopies: 3", "copies", 3, "twice, first in line 2"),
        ("name: dr01", "store", None, "is missing"),
        ("", "store", None, "is missing"),
        ("store: &a fs:/x\nname: *a", "", 1, "anchors and aliases"),
        ("store: fs:/x\nname: {[a]: b", "", 2, "not valid YAML"),
        ("- store", "", 1, "a list"),
        ("store: fs:/x\n---\nstore: fs:/y", "", 2, "not valid YAML"),
        ("store: " + "[" * 1000, "", 1, "nested too deeply"),
        ("store: !!python/object/apply:os.system [id]", "store", 1, "must be text"),
        ("? [a]\n: b", "", 1, "a key must be text"),
    ],
)
def test_what_is_wrong_is_named_with_its_key_and_line(text: str, key: str, line: int, says: str) -> None:
    error = refusal(text)
    assert (error.key, error.line) == (key, line)
    assert says in str(error)
    assert error.exit_code == 2
    assert "/etc/t.yaml" in str(error)
    assert "\n" not in str(error)


def test_servers_that_wait_for_each_other_in_a_circle_are_refused() -> None:
    text = "store: fs:/x\nactivation:\n servers:\n  A: {start_after: B}\n  B: {start_after: C}\n  C: {start_after: A}\n"
    error = refusal(text)
    assert error.key == "activation.servers.A.start_after"
    assert error.line == 4
    assert "A" in str(error) and "B" in str(error) and "C" in str(error)


def test_a_bomb_of_aliases_is_refused_before_it_expands() -> None:
    levels = "".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]\n" for n in range(1, 40))
    assert "anchors" in str(refusal(f"l0: &l0 [x]\n{levels}"))


def test_a_file_that_is_far_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_text("store: fs:/x\n" + "# padding\n" * 100_000)
    with pytest.raises(ConfigError, match="larger than"):
        config.load(str(path))


def test_a_missing_file_is_named_with_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(str(tmp_path / "none.yaml"))
    assert str(tmp_path / "none.yaml") in str(caught.value)
    assert "store: fs:" in str(caught.value)


def test_a_file_that_is_not_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(b"store: fs:/x\nname: \xff\n")
    with pytest.raises(ConfigError) as caught:
        config.load(str(path))
    assert caught.value.line == 2


def test_a_directory_is_not_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "bytes_a_second"),
    [
        ("0", 0),
        ("65536", 65536),
        ("1k", 1024),
        ("10M", 10 * 1024**2),
        ("10 M", 10 * 1024**2),
        ("1.5G", 3 * 512 * 1024**2),
        ("1T", 1024**4),
    ],
)
def test_rates_are_read_in_powers_of_1024(text: str, bytes_a_second: int) -> None:
    assert config.parse_rate(text) == bytes_a_second


@pytest.mark.parametrize("text", ["", "M", "-1", "1e6", "10Mbit", "1 000", "0x10", "0.1", "1.", "٣"])
def test_what_is_not_a_rate_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a rate"):
        config.parse_rate(text)


@pytest.mark.parametrize("text", ["10", "1023", "0.5K"])
def test_a_rate_whose_unit_was_forgotten_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="not a rate: .* less than 1K a second; is M missing"):
        config.parse_rate(text)


def test_the_highest_rate_fits_into_what_a_node_is_told() -> None:
    highest = config.parse_rate("1024T")
    told = Welcome(1, "sha256", (), "dr01", 16, highest)
    assert decode(Welcome, memoryview(told.encode())) == told
    with pytest.raises(UsageError, match="more than 1024T a second"):
        config.parse_rate("1025T")


@given(st.text(max_size=200))
def test_any_text_is_either_a_configuration_or_a_config_error(text: str) -> None:
    try:
        config.parse(text, "t.yaml")
    except ConfigError:
        pass


@given(
    st.recursive(
        st.sampled_from(["a", "1", "''", "~", "on", "!!int x", "[]", "{}"]),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
            st.dictionaries(st.sampled_from(["connect", "servers", "W", "start_after"]), inner, max_size=3).map(
                lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"
            ),
        ),
        max_leaves=8,
    ),
    st.sampled_from(sorted(config.Config.__dataclass_fields__)),
)
def test_any_value_for_any_key_is_taken_or_refused_by_name(value: str, key: str) -> None:
    text = f"{key}: {value}" if key == "store" else f"store: fs:/x\n{key}: {value}"
    try:
        config.parse(text, "t.yaml")
    except ConfigError as error:
        assert error.key.startswith(key)
        assert error.line


@pytest.mark.parametrize(
    ("said", "sign"),
    [
        ("agent", config.SignOfLife("agent")),
        ("90", config.SignOfLife("time", seconds=90)),
        ("'serial: web\\d+ login:'", config.SignOfLife("serial", r"web\d+ login:")),
    ],
)
def test_a_sign_of_life_is_an_agent_a_time_or_a_pattern(said: str, sign: config.SignOfLife) -> None:
    text = f"store: fs:/x\nactivation: {{servers: {{Web01: {{sign_of_life: {said}}}}}}}"
    assert config.parse(text, "t.yaml").activation.servers["Web01"].sign_of_life == sign


@pytest.mark.parametrize("said", ["login", "'serial:'", "0", "999999", "'serial: ('"])
def test_any_other_sign_of_life_is_refused(said: str) -> None:
    text = f"store: fs:/x\nactivation:\n  servers:\n    Web01:\n      sign_of_life: {said}"
    with pytest.raises(ConfigError, match="t.yaml:5: .*sign_of_life"):
        config.parse(text, "t.yaml")


def test_folders_beside_the_store_and_overlays_within_it_are_taken() -> None:
    found = config.parse("store: fs:/x\nstate: /x-state\nactivation: {overlays: /x/overlays}", "t.yaml")
    assert (found.state, found.overlays) == ("/x-state", "/x/overlays")


def test_overlays_lie_beside_the_state_unless_somebody_says_where() -> None:
    assert config.parse("store: fs:/x", "t.yaml").overlays == "/var/lib/anvil-dr-overlays"
    assert config.parse("store: fs:/x\nactivation: {overlays: /big}", "t.yaml").overlays == "/big"


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("45", 45), ("45s", 45), ("90m", 5400), ("12h", 43200), ("12 H", 43200), ("7d", 604800)],
)
def test_times_are_read_in_seconds_minutes_hours_and_days(text: str, seconds: int) -> None:
    assert config.parse(f"store: fs:/x\nmin_set_age: {text}", "t").min_set_age == seconds
