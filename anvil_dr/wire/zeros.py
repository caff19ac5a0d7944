"""Which pages hold nothing but zeros. Pure."""

from __future__ import annotations

from typing import List

from anvil_dr.wire.digest import BLOCK_BYTES, PAGE_BYTES, PAGES_PER_BLOCK

_WORD_BYTES = 8
_ZERO_PAGE = bytes(PAGE_BYTES)
_ALL = (1 << PAGES_PER_BLOCK) - 1


def filled_pages(blocks: memoryview) -> List[int]:
    """For each of some whole blocks, the mask of its pages that are not zeros."""
    masks = [_ALL] * (len(blocks) // BLOCK_BYTES)
    # One word tells nearly every page that is not zeros, and all of them are looked at in one call.
    words = blocks.cast("Q")[:: PAGE_BYTES // _WORD_BYTES].tolist()
    if 0 in words:
        for page, word in enumerate(words):
            if word == 0 and bytes(blocks[page * PAGE_BYTES : (page + 1) * PAGE_BYTES]) == _ZERO_PAGE:
                masks[page // PAGES_PER_BLOCK] &= ~(1 << page % PAGES_PER_BLOCK)
    return masks
