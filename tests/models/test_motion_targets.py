"""Motion targets against loops, and what every target's loss owes its contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from test_histograms import BINS, histogram_of, slopes

from kinema.errors import ConfigError
from kinema.models.pixels import PIXEL_MEAN, PIXEL_STD
from kinema.models.target_rule import ClipInputs, TargetRule, Wanted
from kinema.models.targets import (
    FlowTarget,
    HOFTarget,
    HOGTarget,
    JointTarget,
    MBHTarget,
    PixelTarget,
    Target,
    TrajectoryTarget,
)
from kinema.models.vit import ViTConfig
from kinema.motion.tracks import patch_points

VIT = ViTConfig(image_size=32, patch_size=16, num_frames=4, embed_dim=24, depth=1, num_heads=2)
SLOTS, POSITIONS = 2, 4
ADAPTER: TypeAdapter[Any] = TypeAdapter(Target)
SPECS: dict[str, dict[str, Any]] = {
    "pixel": {"name": "pixel"},
    "hog": {"name": "hog"},
    "hog-steps": {"name": "hog", "steps": 3},
    "hog-linear-l2": {"name": "hog", "votes": "linear", "norm": "l2"},
    "flow": {"name": "flow"},
    "flow-patch": {"name": "flow", "norm": "patch"},
    "hof": {"name": "hof"},
    "hof-steps": {"name": "hof", "steps": 3},
    "mbh": {"name": "mbh"},
    "mbh-steps": {"name": "mbh", "steps": 3},
    "trajectory": {"name": "trajectory", "length": 3},
    "trajectory-position": {"name": "trajectory", "length": 3, "features": ["position"]},
    "trajectory-all": {
        "name": "trajectory",
        "length": 2,
        "features": ["position", "shape", "hof", "mbh"],
    },
    "trajectory-mean": {"name": "trajectory", "length": 3, "merge": "mean"},
    "trajectory-longest": {"name": "trajectory", "length": 3, "merge": "longest"},
    "trajectory-per-step": {"name": "trajectory", "length": 3, "norm_scope": "per_step"},
    "joint": {"name": "joint", "parts": [{"name": "hog"}, {"name": "mbh"}]},
    "joint-base": {
        "name": "joint",
        "parts": [{"name": "hog"}, {"name": "trajectory", "length": 3, "features": ["position"]}],
    },
}
TARGETS: dict[str, TargetRule] = {name: ADAPTER.validate_python(s) for name, s in SPECS.items()}
every_target = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def inputs_for(target: TargetRule, batch: int = 2, seed: int = 0) -> ClipInputs:
    """Random clips and whatever the target asks for."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    motion: dict[str, torch.Tensor] = {}
    size = VIT.image_size
    for name, asked in target.requests(VIT).items():
        if asked.frames:
            motion[f"{name}/frames"] = rand(batch, SLOTS, asked.length, 3, size, size)
        if asked.flow:
            motion[f"{name}/flow"] = 6 * rand(batch, SLOTS, asked.length, size, size, 2) - 3
        if asked.points:
            count = POSITIONS * asked.points
            steps = 4 * rand(batch, SLOTS, count, asked.length, 2) - 2
            start = torch.from_numpy(patch_points(size, VIT.patch_size, asked.points))
            start = start.expand(batch, SLOTS, count, 2)[:, :, :, None]
            motion[f"{name}/displacements"] = steps
            motion[f"{name}/positions"] = torch.cat([start, start + steps.cumsum(dim=3)], dim=3)
            motion[f"{name}/valid"] = rand(batch, SLOTS, count) > 0.3
    return ClipInputs(rand(batch, 3, VIT.num_frames, size, size), motion)


def mask_of(batch: int = 2) -> torch.Tensor:
    rng = np.random.default_rng(0)
    mask = torch.zeros(batch, SLOTS * POSITIONS, dtype=torch.bool)
    for row in mask:
        row[rng.choice(8, 5, replace=False)] = True
    return mask


@every_target
def test_what_is_computed_has_the_promised_shape(target: TargetRule) -> None:
    wanted = target.compute(inputs_for(target), mask_of(), VIT)
    assert wanted.values.shape == (2, 5, target.dim(VIT))
    assert torch.isfinite(wanted.values).all()
    assert target.dim(VIT) == sum(target.dims(VIT))
    if wanted.weights is not None:
        assert wanted.weights.shape == wanted.values.shape


@every_target
def test_the_loss_is_zero_at_the_target_and_its_gradient_is_right(target: TargetRule) -> None:
    wanted = target.compute(inputs_for(target), mask_of(), VIT)
    wanted = Wanted(
        wanted.values[:, :2, :7].double(),
        None if wanted.weights is None else wanted.weights[:, :2, :7].double(),
    )
    assert target.loss(wanted.values, wanted).item() == 0
    guess = torch.randn_like(wanted.values, requires_grad=True)
    assert target.loss(guess, wanted).item() > 0
    torch.autograd.gradcheck(lambda g: target.loss(g, wanted), guess)


@every_target
def test_a_clips_target_does_not_depend_on_its_batch_mates(target: TargetRule) -> None:
    inputs, mask = inputs_for(target, batch=3), mask_of(3)
    whole = target.compute(inputs, mask, VIT).values
    alone = ClipInputs(inputs.clip[1:2], {k: v[1:2] for k, v in inputs.motion.items()})
    torch.testing.assert_close(target.compute(alone, mask[1:2], VIT).values[0], whole[1])


@every_target
def test_hidden_tokens_come_in_ascending_order(target: TargetRule) -> None:
    inputs = inputs_for(target, batch=1)
    every = torch.ones(1, SLOTS * POSITIONS, dtype=torch.bool)
    whole = target.compute(inputs, every, VIT).values
    some = every.clone()
    some[0, [1, 6]] = False
    torch.testing.assert_close(target.compute(inputs, some, VIT).values, whole[:, some[0]])


@pytest.mark.parametrize(
    ("spec", "dim"),
    [
        ({"name": "pixel"}, 1536),
        ({"name": "hog"}, 108),
        ({"name": "hof"}, 36),
        ({"name": "mbh"}, 72),
        ({"name": "flow"}, 1024),
        ({"name": "trajectory"}, 4 * 6 * 11),
        ({"name": "trajectory", "features": ["position"]}, 48),
        ({"name": "trajectory", "merge": "mean"}, 66),
        ({"name": "hog", "steps": 6}, 648),
    ],
)
def test_numbers_per_token_at_the_papers_sizes(spec: dict[str, Any], dim: int) -> None:
    assert ADAPTER.validate_python(spec).dim(ViTConfig()) == dim


def token_pixels(token: int) -> tuple[slice, slice]:
    """Rows and columns of a token of the 2 x 2 grid."""
    row, column = divmod(token % POSITIONS, 2)
    return slice(16 * row, 16 * row + 16), slice(16 * column, 16 * column + 16)


def cells(across: np.ndarray, down: np.ndarray, token: int, signed: bool) -> np.ndarray:
    """Four histograms of a token's 8 px cells, (4 * bins,)."""
    rows, columns = token_pixels(token)
    x, y = across[rows, columns], down[rows, columns]
    found = []
    for row in (0, 8):
        for column in (0, 8):
            cell = slice(row, row + 8), slice(column, column + 8)
            found.append(histogram_of(x[cell], y[cell], signed, "hard"))
    return np.concatenate(found)


@pytest.mark.parametrize("token", [0, 6])
def test_hog_describes_the_middle_frame_of_every_colour(token: int) -> None:
    inputs = inputs_for(HOGTarget())
    every = torch.ones(2, 8, dtype=torch.bool)
    got = HOGTarget().compute(inputs, every, VIT).values[1, token].numpy()
    frame = inputs.clip[1, :, 2 * (token // POSITIONS) + 1].numpy()
    expected = []
    for channel in range(3):
        pixels = (frame[channel] - PIXEL_MEAN[channel]) / PIXEL_STD[channel]
        expected.append(cells(*slopes(pixels), token, signed=False))
    np.testing.assert_allclose(got, np.concatenate(expected), atol=1e-9)


@pytest.mark.parametrize("token", [1, 7])
def test_hof_and_mbh_describe_the_flow_from_the_middle_frame(token: int) -> None:
    inputs = inputs_for(HOFTarget())
    every = torch.ones(2, 8, dtype=torch.bool)
    flow = inputs.motion["dense/flow"][0, token // POSITIONS, 1].numpy()
    hof = HOFTarget().compute(inputs, every, VIT).values[0, token].numpy()
    np.testing.assert_allclose(
        hof, cells(flow[..., 0], flow[..., 1], token, signed=True), atol=1e-9
    )
    mbh = MBHTarget().compute(inputs, every, VIT).values[0, token].numpy()
    expected = [cells(*slopes(flow[..., i]), token, signed=False) for i in (0, 1)]
    np.testing.assert_allclose(mbh, np.concatenate(expected), atol=1e-9)


def test_flow_target_is_the_flow_itself() -> None:
    inputs = inputs_for(FlowTarget())
    every = torch.ones(2, 8, dtype=torch.bool)
    got = FlowTarget().compute(inputs, every, VIT).values[1, 5].reshape(2, 16, 16, 2)
    rows, columns = token_pixels(5)
    torch.testing.assert_close(got, inputs.motion["dense/flow"][1, 1][:, rows, columns])


def reference_positions(inputs: ClipInputs, clip: int, token: int, length: int) -> np.ndarray:
    """Normalised displacements of a token's counted points, point after point, NaN otherwise."""
    slot, position = divmod(token, POSITIONS)
    points = slice(4 * position, 4 * position + 4)
    steps = inputs.motion["tracks/displacements"][clip, slot, points].numpy()
    valid = inputs.motion["tracks/valid"][clip, slot, points].numpy()
    counted = steps[valid]
    out = np.full((4, length, 2), np.nan)
    if len(counted):
        out[valid] = (counted - counted.mean()) / max(counted.std(), 0.1)
    return out.reshape(-1)


@pytest.mark.parametrize("token", range(8))
def test_positions_are_normalised_over_the_counted_points_of_a_patch(token: int) -> None:
    target = TrajectoryTarget(length=3, features=("position",))
    inputs = inputs_for(target)
    wanted = target.compute(inputs, torch.ones(2, 8, dtype=torch.bool), VIT)
    assert wanted.weights is not None
    expected = reference_positions(inputs, 0, token, 3)
    counted = ~np.isnan(expected)
    np.testing.assert_array_equal(wanted.weights[0, token].numpy() > 0, counted)
    np.testing.assert_allclose(
        wanted.values[0, token].numpy()[counted], expected[counted], atol=1e-5
    )


def test_released_normalisation_is_over_the_points_of_each_step() -> None:
    target = TrajectoryTarget(length=3, features=("position",), norm_scope="per_step")
    inputs = inputs_for(target)
    inputs.motion["tracks/valid"].fill_(True)
    inputs.motion["tracks/displacements"].mul_(20)  # far above the floor of the deviation
    got = target.compute(inputs, torch.ones(2, 8, dtype=torch.bool), VIT).values
    got = got.reshape(2, 8, 4, 3, 2)
    assert got.mean(dim=2).abs().max() < 1e-5
    torch.testing.assert_close(got.std(dim=2, correction=0), torch.ones(2, 8, 3, 2))
    inputs.motion["tracks/displacements"].fill_(1)
    still = target.compute(inputs, torch.ones(2, 8, dtype=torch.bool), VIT).values
    assert still.abs().max() == 0  # a common motion of the patch is lost, as in the release


def test_static_patches_are_zero_and_not_noise() -> None:
    target = TrajectoryTarget(length=3, features=("position",))
    inputs = inputs_for(target)
    inputs.motion["tracks/displacements"].mul_(0.001)
    wanted = target.compute(inputs, torch.ones(2, 8, dtype=torch.bool), VIT)
    assert wanted.values.abs().max() < 0.05


def test_shape_is_the_histogram_at_every_step_of_every_point() -> None:
    target = TrajectoryTarget(length=3, features=("shape",), norm_scope="none")
    inputs = inputs_for(target)
    positions = inputs.motion["tracks/positions"]
    positions.copy_(positions.round().clamp(4, 28))  # windows wholly inside, on pixel corners
    got = target.compute(inputs, torch.ones(2, 8, dtype=torch.bool), VIT).values
    got = got.reshape(2, SLOTS, POSITIONS, 4, 3, BINS)
    for slot, position, point, step in [(0, 0, 0, 0), (1, 2, 3, 2), (0, 3, 1, 1)]:
        column, row = positions[1, slot, 4 * position + point, step].int().tolist()
        expected = np.zeros(BINS)
        for channel in range(3):
            frame = inputs.motion["tracks/frames"][1, slot, step, channel].numpy()
            across, down = slopes((frame - PIXEL_MEAN[channel]) / PIXEL_STD[channel])
            window = slice(row - 4, row + 4), slice(column - 4, column + 4)
            expected += histogram_of(across[window], down[window], False, "hard") / 3
        np.testing.assert_allclose(got[1, slot, position, point, step].numpy(), expected, atol=1e-5)


def test_trajectories_that_are_not_counted_do_not_matter() -> None:
    target = TrajectoryTarget(length=3, features=("position", "shape"))
    inputs, mask = inputs_for(target), mask_of()
    wanted = target.compute(inputs, mask, VIT)
    guess = torch.zeros_like(wanted.values)
    changed = {name: tensor.clone() for name, tensor in inputs.motion.items()}
    changed["tracks/displacements"][~changed["tracks/valid"]] = 99.0
    other = target.compute(ClipInputs(inputs.clip, changed), mask, VIT)
    torch.testing.assert_close(target.loss(guess, other), target.loss(guess, wanted))
    assert wanted.weights is not None
    assert 0 < wanted.weights.mean() < 1
    counting = TARGETS["trajectory"].model_copy(update={"count_lost": True})
    lost = counting.compute(ClipInputs(inputs.clip, changed), mask, VIT)
    assert lost.weights is not None
    assert bool((lost.weights == 1).all())
    changed["tracks/valid"].fill_(False)
    nothing = target.compute(ClipInputs(inputs.clip, changed), mask, VIT)
    assert target.loss(guess + 5, nothing).item() == 0


def test_merging_takes_the_mean_or_the_longest_of_a_patchs_tracks() -> None:
    specs: dict[str, Any] = {"length": 3, "features": ("position",), "norm_scope": "none"}
    inputs = inputs_for(TrajectoryTarget(**specs))
    steps, valid = inputs.motion["tracks/displacements"], inputs.motion["tracks/valid"]
    every = torch.ones(2, 8, dtype=torch.bool)
    mean, longest = (
        TrajectoryTarget(**specs, merge=merge).compute(inputs, every, VIT)
        for merge in ("mean", "longest")
    )
    for slot in range(SLOTS):
        for position in range(POSITIONS):
            token = slot * POSITIONS + position
            points = slice(4 * position, 4 * position + 4)
            counted = steps[0, slot, points][valid[0, slot, points]]
            assert mean.weights is not None
            assert (mean.weights[0, token] == float(len(counted) > 0)).all()
            if len(counted):
                torch.testing.assert_close(
                    mean.values[0, token].reshape(3, 2).double(), counted.mean(dim=0),
                    atol=1e-5, rtol=0,
                )  # fmt: skip
                length = counted.norm(dim=-1).sum(dim=-1)
                torch.testing.assert_close(
                    longest.values[0, token].reshape(3, 2).double(), counted[length.argmax()],
                    atol=1e-5, rtol=0,
                )  # fmt: skip


def test_a_joint_loss_is_the_mean_of_its_parts() -> None:
    joint = TARGETS["joint-base"]
    assert isinstance(joint, JointTarget)
    inputs, mask = inputs_for(joint), mask_of()
    wanted = joint.compute(inputs, mask, VIT)
    guess = torch.randn_like(wanted.values)
    losses, start = [], 0
    for number, part in enumerate(joint.parts):
        mine = {
            name.removeprefix(f"{number}."): tensor
            for name, tensor in inputs.motion.items()
            if name.startswith(f"{number}.")
        }
        alone = part.compute(ClipInputs(inputs.clip, mine), mask, VIT)
        stop = start + part.dim(VIT)
        losses.append(part.loss(guess[..., start:stop], alone))
        start = stop
    torch.testing.assert_close(joint.loss(guess, wanted), torch.stack(losses).mean())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "hog", "cell": 5}, "target.cell: 5 px do not divide patch_size 16"),
        ({"name": "joint", "parts": [{"name": "hof", "cell": 7}, {"name": "hog"}]}, "7 px do not"),
    ],
)
def test_targets_that_do_not_fit_the_patches_are_refused(
    spec: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        ADAPTER.validate_python(spec).check(VIT)


def test_points_denser_than_pixels_are_refused() -> None:
    tiny = ViTConfig(image_size=8, patch_size=2, num_frames=4, embed_dim=24, depth=1, num_heads=2)
    with pytest.raises(ConfigError, match="9 do not fit a patch of 2 px"):
        TrajectoryTarget(num_points=9).check(tiny)


def test_a_joint_target_has_two_parts_and_none_of_them_is_joint() -> None:
    with pytest.raises(ValidationError, match="at least 2"):
        JointTarget(parts=(PixelTarget(),))
    with pytest.raises(ValidationError, match="joint"):
        ADAPTER.validate_python({"name": "joint", "parts": [SPECS["joint"], {"name": "hog"}]})


def test_what_each_target_reads() -> None:
    reading = {name for name, target in TARGETS.items() if target.needs == {"flow"}}
    assert reading == {name for name in TARGETS if not name.startswith(("pixel", "hog"))}
