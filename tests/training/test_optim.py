"""Schedules against NumPy's closed form, parameter groups against the rule."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from kinema.training.optim import OptimConfig, Schedule, layer_index, parameter_groups, schedule


@given(
    warmup=st.integers(0, 30),
    rest=st.integers(1, 50),
    peak=st.floats(1e-5, 1),
    floor=st.floats(0, 1e-5),
)
def test_schedule_is_linear_warm_up_then_cosine(
    warmup: int, rest: int, peak: float, floor: float
) -> None:
    table = np.concatenate(
        [
            np.linspace(0, peak, warmup),
            [floor + 0.5 * (peak - floor) * (1 + np.cos(np.pi * i / rest)) for i in range(rest)],
        ]
    )
    rule = Schedule(peak, floor, warmup, warmup + rest)
    np.testing.assert_allclose([rule(step) for step in range(warmup + rest)], table, atol=1e-12)


def test_peak_and_floor_scale_with_the_batch() -> None:
    rule = schedule(OptimConfig(base_lr=1e-3, min_lr=1e-5, warmup_epochs=2), 1024, 10, 8)
    assert (rule.peak, rule.floor) == (4e-3, 4e-5)
    assert (rule.warmup_steps, rule.total_steps) == (20, 80)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.patch_embed = nn.Linear(2, 2)
        self.encoder.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
        self.head = nn.Linear(2, 2)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 2))


def test_layer_index() -> None:
    names = [
        "encoder.patch_embed.weight",
        "encoder.blocks.0.bias",
        "encoder.blocks.2.weight",
        "head.bias",
    ]
    assert [layer_index(name, 3) for name in names] == [0, 1, 3, 4]


def test_groups_decay_matrices_only_and_scale_by_depth() -> None:
    model = Tiny()
    groups, factors = parameter_groups(model, OptimConfig(weight_decay=0.05, layer_decay=0.5), 3)
    of = {
        id(parameter): (factor, group["weight_decay"])
        for group, factor in zip(groups, factors, strict=True)
        for parameter in group["params"]  # type: ignore[attr-defined]
    }
    assert of[id(model.encoder.patch_embed.weight)] == (0.5**4, 0.05)
    assert of[id(model.encoder.blocks[2].weight)] == (0.5, 0.05)
    assert of[id(model.encoder.blocks[0].bias)] == (0.5**3, 0.0)
    assert of[id(model.head.weight)] == (1.0, 0.05)
    assert of[id(model.mask_token)] == (1.0, 0.0)
    assert len(of) == len(list(model.parameters()))


def test_frozen_parameters_are_left_out() -> None:
    model = Tiny()
    model.head.requires_grad_(False)
    groups, _ = parameter_groups(model, OptimConfig(), 3)
    assert sum(len(group["params"]) for group in groups) == 9  # type: ignore[arg-type]


def test_ratio_outside_range_is_refused() -> None:
    with pytest.raises(ValueError, match="layer_decay"):
        OptimConfig(layer_decay=1.5)
