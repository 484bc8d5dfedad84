"""Whether requests fit on a cluster, as arithmetic. Knows no Ray."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

Bundle = Mapping[str, float]
"""Resources that one process holds, by Ray's names: CPU, GPU, memory (bytes), custom ones."""

_UNITS = 10_000
"""Ray counts resources in ten-thousandths; integers keep 0.1 * 3 from missing 0.3."""
_SHOWN = ("CPU", "GPU")
_NODE_TYPE = re.compile(r"[1-9]\d*x\w+=\d+(\.\d+)?(\+\w+=\d+(\.\d+)?)*")


def node_types(text: str) -> list[tuple[int, Bundle]]:
    """How many nodes of each kind may start on demand: `16xCPU=32,4xCPU=48+GPU=4`.

    Raises:
        ValueError: anything else.
    """
    types: list[tuple[int, Bundle]] = []
    for part in text.split(","):
        if not _NODE_TYPE.fullmatch(part.strip()):
            raise ValueError(f"'{part}' is not of the form 16xCPU=32 or 4xCPU=48+GPU=4")
        count, _, amounts = part.strip().partition("x")
        named = (amount.partition("=") for amount in amounts.split("+"))
        types.append((int(count), {name: float(number) for name, _, number in named}))
    return types


def reachable(nodes: Sequence[Bundle], types: Sequence[tuple[int, Bundle]]) -> list[Bundle]:
    """The live nodes and those that may yet start.

    Args:
        nodes: what each live node has. One that agrees with a type in CPUs, GPUs and everything
            that the type names is one of its kind.
        types: how many of each kind there can be, and what one has.
    """
    found, unmatched = list(nodes), list(nodes)
    for count, kind in types:
        names = {*kind, *_SHOWN}
        alike = [n for n in unmatched if all(n.get(k, 0) == kind.get(k, 0) for k in names)][:count]
        for node in alike:
            unmatched.remove(node)
        found += [kind] * (count - len(alike))
    return found


def shortage(bundles: Sequence[Bundle], nodes: Sequence[Bundle]) -> str | None:
    """Why `bundles` cannot all be placed at once; None when they can.

    Args:
        bundles: each placed whole on one node.
        nodes: what each node has.
    """
    have, wanted = total(nodes), total(bundles)
    lacking = [name for name in sorted(wanted) if _units(wanted[name]) > _units(have.get(name, 0))]
    if lacking:
        absent = [name for name in lacking if not have.get(name)]
        if absent:
            return f"the cluster has no {' and no '.join(absent)} (it has {_text(have)})"
        too_much = _text({name: wanted[name] for name in lacking})
        return f"that is {too_much} in all and the cluster has {_text(have)}"
    for bundle, count in _grouped(bundles):
        room = sum(_slots(node, bundle) for node in nodes)
        if room < count:
            return f"only {room} of them fit on its nodes ({_kinds(nodes)}) at once"
    return None


def concurrency(
    per_trial: Sequence[Bundle], driver: Bundle, wanted: int, nodes: Sequence[Bundle]
) -> tuple[int, str]:
    """How many trials can run at once, and the reason in words.

    By sums, K = min over resources of floor(have / (workers + driver)); and K trials of n equal
    workers need K * n slots. Drivers may land wherever they fit, so each of up to K such nodes
    without room beside its slots is taken to lose one.
    """
    have = total(nodes)
    trial = total([*per_trial, driver])
    counts = {
        name: _units(have.get(name, 0)) // _units(amount)
        for name, amount in trial.items()
        if _units(amount)
    }
    scarce = min(counts, key=lambda name: counts[name])
    reason = (
        f"each takes {_text({scarce: trial[scarce]})} with its driver, the cluster "
        f"has {_text({scarce: have.get(scarce, 0.0)})}"
    )
    count = min(counts[scarce], wanted)
    for bundle, number in _grouped(per_trial):
        while count and count * number > _safe_slots(nodes, bundle, driver, count):
            count -= 1
            reason = (
                f"each needs {number} x {{{_text(bundle)}}} beside the drivers, nodes have "
                + _kinds(nodes)
            )
    return (wanted, "as many as asked for") if count == wanted else (count, reason)


def _safe_slots(nodes: Sequence[Bundle], bundle: Bundle, driver: Bundle, num_drivers: int) -> int:
    """Slots for `bundle` that remain wherever `num_drivers` drivers land."""
    drivers = {name: amount * num_drivers for name, amount in driver.items()}
    slots = [_slots(node, bundle) for node in nodes]
    at_risk = 0
    for node, count in zip(nodes, slots, strict=True):
        rest = {name: node.get(name, 0) - count * bundle.get(name, 0) for name in drivers}
        tight = any(_units(rest[name]) < _units(amount) for name, amount in drivers.items())
        at_risk += count > 0 and tight and _slots(node, driver) > 0
    return sum(slots) - min(num_drivers, at_risk)


def _slots(node: Bundle, bundle: Bundle) -> int:
    """How many of `bundle` one node holds."""
    counts = [_units(node.get(k, 0)) // _units(v) for k, v in bundle.items() if _units(v)]
    return min(counts, default=sys.maxsize)


def _grouped(bundles: Sequence[Bundle]) -> list[tuple[dict[str, float], int]]:
    counts = Counter(tuple(sorted(bundle.items())) for bundle in bundles)
    return [(dict(bundle), count) for bundle, count in counts.items()]


def total(bundles: Sequence[Bundle]) -> dict[str, float]:
    """All bundles together."""
    amounts: Counter[str] = Counter()
    for bundle in bundles:
        for name, amount in bundle.items():
            amounts[name] += _units(amount)
    return {name: amount / _UNITS for name, amount in amounts.items()}


def _units(amount: float) -> int:
    return round(amount * _UNITS)


def described(bundles: Sequence[Bundle]) -> str:
    """For messages: `2 x {CPU 4, GPU 1}`."""
    return " and ".join(f"{n} x {{{_text(bundle)}}}" for bundle, n in _grouped(bundles))


def _kinds(nodes: Sequence[Bundle]) -> str:
    """What nodes have, alike ones once."""
    counts = Counter(_text(node) for node in nodes)
    return "; ".join(text if n == 1 else f"{n} x {{{text}}}" for text, n in counts.items())


def _text(amounts: Bundle) -> str:
    """CPU and GPU always, others when asked for; Ray's internal node markers never."""
    parts = []
    for name in sorted(amounts, key=lambda name: (name not in _SHOWN, name)):
        if name.startswith("node:") or (
            name in {"memory", "object_store_memory"} and len(amounts) > 2
        ):
            continue
        amount = amounts[name]
        text = f"{amount / 2**30:.1f} GiB" if "memory" in name else f"{amount:g}"
        parts.append(f"{name} {text}")
    return ", ".join(parts) or "nothing"
