"""Image names: built from a known server and disk, never split, refused where a store could not have them."""

from __future__ import annotations

from typing import List, Literal, Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil_dr import naming
from anvil_dr.errors import ImageNameError
from anvil_dr.model import INCOMPLETE, Owner, Sequence

LVM_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-"
# Tried one by one with lvcreate of lvm2 2.03.16: "Names including ... are reserved", "Names starting ... are reserved".
LVM_REFUSES_INSIDE = (
    "_cdata _cmeta _corig _cpool _cvol _imeta _iorig _mimage _mimagetmp _mlog _pmspare _rimage _rmeta _tdata _tmeta "
    "_vdata _vorigin _wcorig"
).split()
LVM_REFUSES_IN_FRONT = ("snapshot", "snapshotx", "pvmove", "pvmove0")
LVM_TAKES_INSIDE = "_pool _cache _tpool _vpool _cow _real _extracted _bdata _bmeta _smeta".split()

words = st.text("ab0_.+-", min_size=1, max_size=6)
owners = st.builds(Owner, words, words)
sequences = st.one_of(st.integers(1, 10**6), st.just(INCOMPLETE))


def accepted(owner: Owner, kind: Literal["fs", "lvm"] = "lvm", location: str = "vg0", copies: int = 2) -> bool:
    try:
        naming.check_image_names(owner, kind, [location], copies)
    except ImageNameError:
        return False
    return True


def test_names_are_those_of_the_specs_example() -> None:
    disks = [Owner("Web01", "Web01_0"), Owner("Web01", "Web01_1")]
    assert [naming.image_name(disk, number) for number in (1, 3) for disk in disks] == [
        "Web01_Web01_0_1",
        "Web01_Web01_1_1",
        "Web01_Web01_0_3",
        "Web01_Web01_1_3",
    ]
    assert naming.image_name(disks[0], INCOMPLETE) == "Web01_Web01_0_incomplete"
    assert naming.file_name(disks[0], INCOMPLETE) == "Web01_Web01_0_incomplete.raw"
    assert naming.file_name(disks[0], 2) == "Web01_Web01_0_2.raw"


@given(owners, sequences)
def test_what_is_built_is_parsed_back(owner: Owner, sequence: Sequence) -> None:
    parsed = (naming.image_base(owner), sequence)
    assert naming.parse_image_name(naming.image_name(owner, sequence)) == parsed
    assert naming.parse_file_name(naming.file_name(owner, sequence)) == parsed


@given(st.text("ab_.0123456789incompletraw", max_size=16))
def test_what_is_parsed_is_what_would_be_built(name: str) -> None:
    parsed = naming.parse_image_name(name)
    if parsed is not None:
        base, sequence = parsed
        assert f"{base}_{sequence}" == name
        assert sequence == INCOMPLETE or sequence >= 1


@pytest.mark.parametrize(
    "name",
    ["", "_1", "a", "a_", "a_0", "a_01", "a_-1", "a_+1", "a_1 ", "a_1\n", "a_١", "a_1.raw", "a_Incomplete", "a1", "_"],
)
def test_other_names_are_no_images(name: str) -> None:
    assert naming.parse_image_name(name) is None


@pytest.mark.parametrize("name", ["a_b_1", "a_b_1.RAW", "a_b_1.raw.bak", ".raw", "a_b_.raw", "a_b_1.raw\n"])
def test_other_names_are_no_image_files(name: str) -> None:
    assert naming.parse_file_name(name) is None


def test_a_number_of_absurd_length_is_no_sequence() -> None:
    assert naming.parse_image_name("a_b_" + "9" * 5000) is None


@pytest.mark.parametrize("number", [0, -1])
def test_there_are_no_sequences_below_one(number: int) -> None:
    with pytest.raises(ValueError, match="sequence"):
        naming.image_name(Owner("a", "b"), number)


@given(st.lists(owners, max_size=6), st.lists(st.tuples(owners, sequences), max_size=6))
def test_listed_names_are_given_to_those_who_would_build_them(
    known: List[Owner], listed: List[Tuple[Owner, Sequence]]
) -> None:
    names = [naming.image_name(owner, sequence) for owner, sequence in listed] + ["lost+found", "a_b", "swap_1"]
    matched = naming.match_owners(names, known)
    for name in names:
        builders = [owner for owner in known if any(naming.image_name(owner, s) == name for _, s in listed)]
        assert (matched[name][0] == builders[0]) if builders else (name not in matched)
    assert all(naming.image_name(*found) == name for name, found in matched.items())
    assert naming.match_files([name + ".raw" for name in names] + names, known) == {
        name + ".raw": found for name, found in matched.items()
    }


def test_of_two_owners_with_the_same_names_the_first_known_has_them() -> None:
    first, second = Owner("a", "b_c"), Owner("a_b", "c")
    assert naming.match_owners(["a_b_c_1"], [first, second]) == {"a_b_c_1": (first, 1)}
    assert naming.match_owners(["a_b_c_1"], [second, first]) == {"a_b_c_1": (second, 1)}


@given(owners, st.lists(owners, max_size=8))
def test_a_collision_is_another_pair_with_the_same_names(owner: Owner, known: List[Owner]) -> None:
    found: Optional[Owner] = naming.find_collision(owner, known)
    colliding = [k for k in known if k != owner and naming.image_name(k, 1) == naming.image_name(owner, 1)]
    assert found == (colliding[0] if colliding else None)


def test_pairs_that_differ_only_in_where_the_underscore_stands_collide() -> None:
    assert naming.find_collision(Owner("a", "b_c"), [Owner("x", "y"), Owner("a_b", "c")]) == Owner("a_b", "c")
    assert naming.find_collision(Owner("a", "b_c"), [Owner("a", "b_c"), Owner("a", "b_c_1")]) is None


@pytest.mark.parametrize("name", ["Web01", "a", "0", "a.b", "a+b", ".a", "...", "+a", "_a", "mirror", "cache", "lvol0"])
def test_ordinary_names_are_accepted_for_servers_and_disks(name: str) -> None:
    naming.check_server_name(name)
    naming.check_disk_name(name)
    assert accepted(Owner(name, name)) and accepted(Owner(name, name), "fs", "/srv/dr")


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "-a", "-", "a/b", "/", "../a", "a\0b", "a b", "a\n", "a:b", "a@b", "a=b", "a#b", "ä", "\udcff"],
)
@pytest.mark.parametrize("kind", ["fs", "lvm"])
def test_a_name_that_lvm_does_not_take_or_that_leaves_the_directory_is_refused(
    name: str, kind: Literal["fs", "lvm"]
) -> None:
    with pytest.raises(ImageNameError):
        naming.check_server_name(name)
    with pytest.raises(ImageNameError):
        naming.check_disk_name(name)
    assert not accepted(Owner(name, "disk"), kind)
    assert not accepted(Owner("server", name), kind)


@given(st.characters())
def test_only_lvms_characters_are_accepted(character: str) -> None:
    assert accepted(Owner(f"a{character}", "b")) == (character in LVM_CHARACTERS)
    assert accepted(Owner("a", f"b{character}"), "fs", "/srv") == (character in LVM_CHARACTERS)


@pytest.mark.parametrize("word", LVM_REFUSES_INSIDE)
def test_a_name_with_a_word_that_lvm_reserves_is_refused_wherever_it_stands(word: str) -> None:
    assert not accepted(Owner(f"a{word}", "b"))
    assert not accepted(Owner("a", f"b{word}x"))
    assert not accepted(Owner("a", word[1:])), "the underscore between server and disk counts"
    assert not accepted(Owner("a", word[1:]), "fs", "/srv/dr")
    assert accepted(Owner(word[1:], "b"))


@pytest.mark.parametrize("word", LVM_REFUSES_IN_FRONT)
def test_a_server_whose_name_begins_with_a_word_that_lvm_reserves_is_refused(word: str) -> None:
    assert not accepted(Owner(word, "b"))
    assert accepted(Owner("a", word))


@pytest.mark.parametrize("word", LVM_TAKES_INSIDE)
def test_words_that_lvm_does_not_reserve_are_accepted(word: str) -> None:
    assert accepted(Owner("a", word[1:])) and accepted(Owner(f"a{word}", "b"))


@given(st.sampled_from(LVM_REFUSES_INSIDE), st.integers(0, 8), words, words)
def test_no_reserved_word_lies_across_an_accepted_server_and_disk(word: str, cut: int, head: str, tail: str) -> None:
    owner = Owner(head + word[:cut], (word[cut + 1 :] if word[cut : cut + 1] == "_" else word[cut:]) + tail)
    if accepted(owner):
        assert not any(reserved in naming.image_name(owner, INCOMPLETE) for reserved in LVM_REFUSES_INSIDE)


# Found with lvcreate and lvrename of lvm2 2.03.16: the longest names that volume groups of these names took.
@pytest.mark.parametrize(
    ("group", "characters"), [("store1", 118), ("my-vg-2", 117), ("v", 123), ("v---------", 107)]
)
def test_a_volumes_name_fits_its_group_with_the_longest_suffix_but_not_one_character_more(
    group: str, characters: int
) -> None:
    server = "a" * (characters - len("_b_incomplete"))
    assert accepted(Owner(server, "b"), "lvm", group)
    assert not accepted(Owner(server + "a", "b"), "lvm", group)
    assert not accepted(Owner(server, "bb"), "lvm", group)


def test_a_hyphen_counts_twice() -> None:
    # store1/a-----_b_incomplete: device-mapper's name has 6 + 1 + 1 + 13 characters and two for each hyphen.
    assert accepted(Owner("a" + "-" * 53, "b"), "lvm", "store1")
    assert not accepted(Owner("a" + "-" * 54, "b"), "lvm", "store1")


def test_the_shortest_group_decides_nothing_while_a_longer_one_could_get_the_image() -> None:
    owner = Owner("a" * 105, "b")
    naming.check_image_names(owner, "lvm", ["store1"], 2)
    with pytest.raises(ImageNameError, match="volume group 'a-long-volume-group'"):
        naming.check_image_names(owner, "lvm", ["store1", "a-long-volume-group"], 2)


def test_a_file_name_has_255_bytes_with_its_longest_suffix() -> None:
    suffix = len("_b_incomplete.raw")
    assert accepted(Owner("a" * (255 - suffix), "b"), "fs", "/srv/dr")
    assert not accepted(Owner("a" * (256 - suffix), "b"), "fs", "/srv/dr")


def test_a_path_has_4095_bytes() -> None:
    owner, name = Owner("a", "b"), len("a_b_incomplete.raw")
    assert accepted(owner, "fs", "/" + "d" * (4095 - 2 - name))
    assert not accepted(owner, "fs", "/" + "d" * (4096 - 2 - name))
    assert not accepted(owner, "fs", "/" + "ä" * ((4096 - 2 - name) // 2))


def test_a_number_longer_than_incomplete_counts() -> None:
    copies = 10**12
    server = "a" * (118 - len("_b_incomplete"))
    assert accepted(Owner(server, "b"), "lvm", "store1", 10**9)
    assert not accepted(Owner(server, "b"), "lvm", "store1", copies)


def test_the_error_names_the_name_and_stays_short() -> None:
    with pytest.raises(ImageNameError, match="'a/b' has '/' in it"):
        naming.check_server_name("a/b")
    with pytest.raises(ImageNameError) as caught:
        naming.check_disk_name("x" * 10**6)
    assert len(str(caught.value)) < 200
