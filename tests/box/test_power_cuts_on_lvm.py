"""Power cuts on volume groups; see cut_chain.py."""

from __future__ import annotations

from pathlib import Path
from typing import Callable

import pytest

from tests.box import cut_chain

CHAINS = [(store, number, cuts) for store in ("lvm",) for number, cuts in enumerate(cut_chain.chains(store))]


@pytest.mark.slow
@pytest.mark.timeout(120 + 60 * cut_chain.CUTS_IN_A_CHAIN)
@pytest.mark.parametrize(("store", "number", "cuts"), CHAINS)
def test_whenever_the_power_is_cut_nothing_is_lost(
    store: str, number: int, cuts: int, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    chain = cut_chain.Chain(store, cut_chain.seed(), cuts, tmp_path)
    try:
        chain.run()
    finally:
        record_property(cut_chain.PROPERTY, chain.facts())
    assert chain.made == cuts
