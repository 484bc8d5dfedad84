"""Whether requests fit on a cluster, as arithmetic. Knows no Ray."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence

Bundle = Mapping[str, float]
"""Resources that one process holds, by Ray's names: CPU, GPU, memory (bytes), custom ones."""

_UNITS = 10_000
"""Ray counts resources in ten-thousandths; integers keep 0.1 * 3 from missing 0.3."""
_SHOWN = ("CPU", "GPU")


def shortage(
    bundles: Sequence[Bundle], nodes: Sequence[Bundle], limits: Bundle | None
) -> str | None:
    """Why `bundles` cannot all be placed at once; None when nothing speaks against it.

    Args:
        bundles: each placed whole on one node.
        nodes: what each live node has.
        limits: the most the cluster can have in all where nodes start on demand; then how the nodes
            are cut is not known, and only sums are compared.
    """
    have = total(nodes) if limits is None else limits
    wanted = total(bundles)
    lacking = [name for name in sorted(wanted) if _units(wanted[name]) > _units(have.get(name, 0))]
    if lacking:
        absent = [name for name in lacking if not have.get(name)]
        too_much = _text({name: wanted[name] for name in lacking})
        reach = "has" if limits is None else "can grow to"
        if absent:
            return f"the cluster has no {' and no '.join(absent)} (it {reach} {_text(have)})"
        return f"that is {too_much} in all and the cluster {reach} {_text(have)}"
    if limits is not None:
        return None
    for bundle, count in _grouped(bundles):
        room = sum(_slots(node, bundle) for node in nodes)
        if room < count:
            largest = "; ".join(_text(node) for node in nodes)
            return f"only {room} of them fit on its nodes ({largest}) at once"
    return None


def concurrency(
    per_trial: Sequence[Bundle],
    driver: Bundle,
    wanted: int,
    nodes: Sequence[Bundle],
    limits: Bundle | None,
) -> tuple[int, str]:
    """How many trials can run at once, and the reason in words.

    By sums, K = min over resources of floor(have / (workers + driver)). Where the nodes are known,
    K trials of n equal workers also need K * n slots; drivers may land wherever they fit, so each
    of up to K such nodes without room beside its slots is taken to lose one.
    """
    have = total(nodes) if limits is None else dict(limits)
    trial = total([*per_trial, driver])
    counts = {
        name: _units(have.get(name, 0)) // _units(amount)
        for name, amount in trial.items()
        if _units(amount)
    }
    scarce = min(counts, key=lambda name: counts[name])
    reason = (
        f"each takes {_text({scarce: trial[scarce]})} with its driver, the cluster "
        f"{'has' if limits is None else 'can grow to'} {_text({scarce: have.get(scarce, 0.0)})}"
    )
    count = min(counts[scarce], wanted)
    if limits is None:
        for bundle, number in _grouped(per_trial):
            while count and count * number > _safe_slots(nodes, bundle, driver, count):
                count -= 1
                reason = (
                    f"each needs {number} x {{{_text(bundle)}}} beside the drivers, nodes have "
                    + "; ".join(_text(node) for node in nodes)
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
