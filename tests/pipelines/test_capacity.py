"""What fits on a cluster, as arithmetic."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kinema.pipelines.capacity import concurrency, node_types, reachable, shortage, total

DRIVER = {"CPU": 0.01}


@pytest.mark.parametrize(
    ("cpus", "workers", "count"),
    [
        (4.0, 2, 1),  # 2 x (2 + 0.01) is more than 4: the second trial would starve
        (5.0, 2, 2),
        (2.0, 2, 0),  # the driver's hundredth is missing
        (2.01, 2, 1),
        (4.0, 1, 3),
        (1.0, 1, 0),
    ],
)
def test_drivers_count_too(cpus: float, workers: int, count: int) -> None:
    found, reason = concurrency([{"CPU": 1}] * workers, DRIVER, 10, [{"CPU": cpus}])
    assert found == count
    assert f"CPU {workers + 0.01:g}" in reason


def test_driver_on_a_resource_of_its_own_leaves_the_cpus_whole() -> None:
    driver = {"trial_driver": 0.01}
    nodes = [{"CPU": 4, "trial_driver": 1}]
    assert concurrency([{"CPU": 1}] * 2, driver, 10, nodes)[0] == 2


def test_driver_cannot_take_room_where_it_cannot_land() -> None:
    nodes = [{"CPU": 1.0, "trial_driver": 1000.0}, {"CPU": 1.0}]
    assert concurrency([{"CPU": 1}] * 2, {"trial_driver": 0.01}, 5, nodes)[0] == 1


def test_scarcest_resource_decides_and_is_named() -> None:
    nodes = [{"CPU": 64, "GPU": 4}]
    count, reason = concurrency([{"CPU": 8, "GPU": 1}] * 2, DRIVER, 10, nodes)
    assert count == 2
    assert "GPU 2" in reason
    assert "GPU 4" in reason


def test_wanted_limits() -> None:
    assert concurrency([{"CPU": 1}], DRIVER, 2, [{"CPU": 64}]) == (2, "as many as asked for")


def test_a_worker_is_not_spread_over_nodes() -> None:
    nodes = [{"CPU": 3.5}, {"CPU": 3.5}]
    assert concurrency([{"CPU": 2}], DRIVER, 10, nodes)[0] == 2
    assert concurrency([{"CPU": 4}], DRIVER, 10, nodes)[0] == 0


def test_a_driver_may_take_the_last_bit_of_a_node() -> None:
    nodes = [{"CPU": 2}, {"CPU": 2}, {"CPU": 2}]
    assert concurrency([{"CPU": 2}], DRIVER, 10, nodes)[0] == 1


def test_tenths_add_up_as_ray_counts_them() -> None:
    assert 0.1 * 3 > 0.3
    assert (
        concurrency([{"CPU": 0.1}], {"trial_driver": 0.01}, 9, [{"CPU": 0.3, "trial_driver": 1}])[0]
        == 3
    )
    assert shortage([{"CPU": 0.1}] * 3, [{"CPU": 0.3}]) is None


CLOUD = node_types("16xCPU=32,4xCPU=48+GPU=4")


def test_nodes_that_start_on_demand_count() -> None:
    head = {"CPU": 0.0, "trial_driver": 1000.0}
    nodes = reachable([head], CLOUD)
    assert (
        shortage([{"CPU": 1}], [head]) == "the cluster has no CPU (it has CPU 0, trial_driver 1000)"
    )
    assert shortage([{"CPU": 1}], nodes) is None
    driver = {"trial_driver": 0.01}
    assert concurrency([{"CPU": 12, "GPU": 1}], driver, 20, nodes)[0] == 16
    # 16 GPUs with 14 CPUs each are there by sums, and 14 CPUs fit three times on a node
    assert concurrency([{"CPU": 14, "GPU": 1}], driver, 20, nodes)[0] == 12
    problem = shortage([{"CPU": 64, "GPU": 1}], nodes)
    assert problem is not None
    assert "only 0 of them fit" in problem
    assert "16 x {CPU 32}; 4 x {CPU 48, GPU 4}" in problem


def test_a_node_that_has_started_is_not_counted_twice() -> None:
    started = {"CPU": 48.0, "GPU": 4.0, "memory": 1e11, "node:10.0.0.2": 1.0}
    nodes = reachable([{"CPU": 0.0}, started, started], CLOUD)
    assert len(nodes) == 1 + 4 + 16
    assert total(nodes)["GPU"] == 16
    assert reachable([{"CPU": 8.0}], []) == [{"CPU": 8.0}]


@pytest.mark.parametrize("text", ["", "CPU=4", "0xCPU=4", "2xCPU", "2xCPU=4+", "2xCPU=four"])
def test_malformed_node_types_are_told(text: str) -> None:
    with pytest.raises(ValueError, match="is not of the form 16xCPU=32 or 4xCPU=48\\+GPU=4"):
        node_types(text)


@given(
    cpus=st.lists(st.integers(1, 16), min_size=1, max_size=4),
    worker=st.integers(1, 4),
    workers=st.integers(1, 4),
)
def test_what_runs_at_once_fits_however_drivers_land(
    cpus: list[int], worker: int, workers: int
) -> None:
    """Against a direct search: drivers dealt out over nodes, workers packed into the rest."""
    nodes = [{"CPU": float(cpu)} for cpu in cpus]
    count, _ = concurrency([{"CPU": worker}] * workers, DRIVER, 100, nodes)
    for spread in range(1, len(cpus) + 1):  # drivers dealt out over the first `spread` nodes
        loads = [0.0] * len(cpus)
        for driver in range(count):
            loads[driver % spread] += 0.01
        room = sum(int((cpu - load) // worker) for cpu, load in zip(cpus, loads, strict=True))
        assert room >= count * workers
    assert count * (worker * workers + 0.01) <= sum(cpus)


@pytest.mark.parametrize(
    ("bundles", "expected"),
    [
        ([{"CPU": 1, "GPU": 1}], "no GPU \\(it has CPU 2\\)"),
        ([{"CPU": 1}] * 3, "CPU 3 in all and the cluster has CPU 2"),
        ([{"CPU": 1, "memory": 4 * 2**30}], "memory 4.0 GiB in all and the cluster has"),
        ([{"CPU": 1, "TPU": 1}], "no TPU"),
    ],
)
def test_what_is_missing_is_named(bundles: list[dict[str, float]], expected: str) -> None:
    nodes = [{"CPU": 2.0, "memory": 2.0 * 2**30, "node:127.0.0.1": 1.0}]
    problem = shortage(bundles, nodes)
    assert problem is not None
    assert re.search(expected, problem)
    assert "node:" not in problem


def test_enough_in_sum_but_not_on_one_node() -> None:
    problem = shortage([{"CPU": 3}] * 2, [{"CPU": 4.0}, {"CPU": 2.0}])
    assert problem is not None
    assert "only 1 of them fit on its nodes" in problem
