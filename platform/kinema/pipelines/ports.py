"""Ports for Ray's servers on this machine."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack

LOWEST, HIGHEST = 20_000, 32_767
"""Above Ray's worker ports and below those that systems give out by themselves: Ray's servers may
share a port, so one out of that range can meet another cluster's process there, which then refuses
the token."""


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 on which nothing listens.

    Raises:
        OSError: there are not that many.
    """
    found: list[int] = []
    with ExitStack() as held:
        for port in random.sample(range(LOWEST, HIGHEST + 1), HIGHEST - LOWEST + 1):
            if len(found) == count:
                return found
            probe = held.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
    raise OSError(f"fewer than {count} ports are free from {LOWEST} to {HIGHEST}")
