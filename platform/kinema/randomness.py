"""Counter-based randomness: what is drawn depends on names, never on what was drawn before.

Temporal offset, crop, flip, mask, jitter and mixup of a sample come from a generator keyed by
`(seed, epoch, sample id, draw, purpose)`. The number of workers, GPUs or restarts changes nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_rng(seed: int, *key: int | str) -> np.random.Generator:
    """A Philox generator that is a pure function of `seed` and `key`.

    `key` parts are told apart by type and position, so `(1, 23)`, `(12, 3)` and `("1", 23)` differ.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *key))
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))
