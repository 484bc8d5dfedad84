"""Rows of sweeps for tests."""

from __future__ import annotations

from typing import Any

INSIDE, RATIO = "mask.inside_ratio", "mask.mask_ratio"


def done(trial: str, top1: float, control: bool = False, **more: Any) -> dict[str, Any]:
    return {
        "trial": trial,
        "control": control,
        "status": "done",
        "reason": "",
        "top1": top1,
        "low": top1 - 0.06,
        "high": top1 + 0.05,
        "chance": 0.125,
        "num_tested": 256,
        "seconds": 3725.0,
        **more,
    }


def inside(ratio: float, top1: float, realised: float | None = None, **more: Any) -> dict[str, Any]:
    masks = {
        "realised_inside_ratio": realised or ratio,
        "clipped_share": 0.02,
        "fallback_share": 0.1,
    }
    return done(f"inside_ratio={ratio}", top1, **{INSIDE: ratio}, **masks, **more)


def inside_ratio_sweep() -> list[dict[str, Any]]:
    """Three trials that worked, in no order, one that failed, and a control."""
    failed = {
        "trial": "inside_ratio=0.95",
        "control": False,
        INSIDE: 0.95,
        "status": "failed",
        "reason": "RuntimeError: out of memory",
    }
    swept = [inside(0.75, 0.51), inside(0.25, 0.46, realised=0.3), inside(0.5, 0.68)]
    return [done("no pretraining", 0.31, control=True), *swept, failed]
