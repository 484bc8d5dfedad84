"""Motion trajectories to be predicted: where points go and what they look like (MME, 3.3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from einops import rearrange, repeat
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from kinema.errors import ConfigError
from kinema.models.histograms import Votes, sobel, window_histograms
from kinema.models.pixels import normalise
from kinema.models.target_rule import ClipInputs, MotionRequest, TargetRule, Wanted, hidden_tokens
from kinema.models.vit import ViTConfig

Feature = Literal["position", "shape", "hof", "mbh"]
BINS = 9
NUMBERS: dict[Feature, int] = {"position": 2, "shape": BINS, "hof": BINS, "mbh": 2 * BINS}
"""Numbers per step of each feature."""


class TrajectoryTarget(TargetRule):
    """Trajectories of `num_points` points per patch over `length` steps (MME, Eq. 2 to 5).

    Each starts in the first raw frame of its slot and moves with the flow between raw frames, which
    the sampled clip does not show. Features, each of every step, point after point:

    - `position`: the displacement, camera motion removed, in px of the input (Eq. 4).
    - `shape`: 9 bins of oriented gradients around the point (Eq. 5), averaged over the colours.
    - `hof`, `mbh`: 9 bins of flow, and 2 x 9 of its boundaries, around the point (Table 11).

    A trajectory that leaves the input is not counted (Eq. 7) unless `count_lost`. Each feature of a
    patch is normalised to zero mean and unit deviation over its counted trajectories.
    """

    name: Literal["trajectory"] = "trajectory"
    features: Annotated[tuple[Feature, ...], Field(min_length=1)] = ("position", "shape")
    length: PositiveInt = Field(default=6, description="steps, L")
    num_points: Literal[1, 4, 9, 16] = Field(default=4, description="per patch, K")
    merge: Literal["none", "mean", "longest"] = Field(
        default="none", description="one trajectory of a patch's: their mean, or the longest"
    )
    count_lost: bool = Field(
        default=False, description="count those that leave the input, too (MME, appendix E)"
    )
    norm_scope: Literal["patch", "per_step", "none"] = Field(
        default="patch",
        description="patch: over points, steps and components; per_step: over points alone, as "
        "released; none",
    )
    min_deviation: PositiveFloat = Field(
        default=0.1, description="px; positions that differ by less are not blown up to unit size"
    )
    min_histogram_deviation: PositiveFloat = Field(
        default=0.01, description="likewise for the histograms, in colours of deviation 1"
    )
    follow: Literal["raw", "stabilised"] = Field(
        default="raw",
        description="what moves the points: raw stays on the object under camera motion; "
        "stabilised is Eq. 6 to the letter",
    )
    window: PositiveInt = Field(
        default=8, multiple_of=2, description="side of the square around a point, px"
    )
    votes: Votes = "hard"

    @property
    def needs(self) -> frozenset[str]:
        """Dense flow."""
        return frozenset({"flow"})

    def check(self, vit: ViTConfig) -> None:
        """Points must not be denser than pixels."""
        if vit.patch_size**2 < self.num_points:
            raise ConfigError(
                [f"target.num_points: {self.num_points} do not fit a patch of {vit.patch_size} px"]
            )

    def requests(self, vit: ViTConfig) -> dict[str, MotionRequest]:
        """Tracks, and what the features are made from at each of their steps."""
        return {
            "tracks": MotionRequest(
                at="raw",
                length=self.length,
                frames="shape" in self.features,
                flow=not {"hof", "mbh"}.isdisjoint(self.features),
                points=self.num_points,
                follow=self.follow,
            )
        }

    def dims(self, vit: ViTConfig) -> tuple[int, ...]:
        """Points * steps * numbers, one part per feature."""
        tracks = self.num_points if self.merge == "none" else 1
        return tuple(tracks * self.length * NUMBERS[feature] for feature in self.features)

    def compute(self, inputs: ClipInputs, mask: Tensor, vit: ViTConfig) -> Wanted:
        """See `TargetRule.compute`; trajectories that are not counted have weight 0."""
        motion = inputs.motion
        valid = rearrange(motion["tracks/valid"], "b s (n k) -> b (s n) k", k=self.num_points)
        if self.count_lost:
            valid = torch.ones_like(valid)
        paths = motion["tracks/displacements"]
        values, weights = [], []
        for feature in self.features:
            raw = paths if feature == "position" else self._histograms(feature, motion)
            tracks = rearrange(raw, "b s (n k) l d -> b (s n) k l d", k=self.num_points).float()
            counted = valid
            if self.merge != "none":
                lengths = (
                    rearrange(paths, "b s (n k) l d -> b (s n) k l d", k=self.num_points)
                    .norm(dim=-1)
                    .sum(dim=-1)
                )
                tracks, counted = self._merged(tracks, valid, lengths)
            floor = self.min_deviation if feature == "position" else self.min_histogram_deviation
            tracks = self._normalised(tracks, counted, floor)
            weight = repeat(counted, "b n k -> b n (k l d)", l=tracks.shape[3], d=tracks.shape[4])
            values.append(hidden_tokens(tracks.flatten(2), mask))
            weights.append(hidden_tokens(weight.float(), mask))
        return Wanted(torch.cat(values, dim=-1), torch.cat(weights, dim=-1))

    def _merged(self, tracks: Tensor, valid: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """One track of each patch: (B, N, K, L, d) -> (B, N, 1, L, d), and whether it counts."""
        counted = valid.any(dim=-1, keepdim=True)
        if self.merge == "mean":
            weight = valid[..., None, None].to(tracks.dtype)
            total = weight.sum(dim=2, keepdim=True).clamp_min(1)
            return (tracks * weight).sum(dim=2, keepdim=True) / total, counted
        best = torch.where(valid, lengths, -1.0).argmax(dim=-1, keepdim=True)
        index = best[..., None, None].expand(-1, -1, 1, *tracks.shape[3:])
        return tracks.gather(2, index), counted

    def _normalised(self, tracks: Tensor, valid: Tensor, floor: float) -> Tensor:
        """Zero mean and unit deviation over the counted tracks (B, N, K, L, d) of each patch."""
        if self.norm_scope == "none":
            return tracks
        dims = (2, 3, 4) if self.norm_scope == "patch" else (2,)
        weight = valid[..., None, None].to(tracks.dtype).expand_as(tracks)
        count = weight.sum(dim=dims, keepdim=True).clamp_min(1)
        mean = (tracks * weight).sum(dim=dims, keepdim=True) / count
        variance = ((tracks - mean) ** 2 * weight).sum(dim=dims, keepdim=True) / count
        return (tracks - mean) / variance.sqrt().clamp_min(floor)

    def _histograms(self, feature: Feature, motion: Mapping[str, Tensor]) -> Tensor:
        """A histogram feature at every step of every point: (B, slots, P, L, numbers)."""
        positions = motion["tracks/positions"]
        steps = []
        for step in range(self.length):
            points = positions[:, :, :, step].flatten(0, 1)
            if feature == "shape":
                frames = normalise(motion["tracks/frames"][:, :, step], channels=2).flatten(0, 1)
                found = self._around(*sobel(frames), points, signed=False)
            else:
                flow = motion["tracks/flow"][:, :, step].flatten(0, 1).movedim(-1, 1)
                found = self._flow_histogram(feature, flow, points)
            steps.append(found.view(*positions.shape[:2], *found.shape[1:]))
        return torch.stack(steps, dim=3)

    def _flow_histogram(self, feature: Feature, flow: Tensor, points: Tensor) -> Tensor:
        if feature == "hof":
            return self._around(flow[:, :1], flow[:, 1:], points, signed=True)
        across, down = sobel(flow)
        return torch.cat(
            [
                self._around(across[:, i : i + 1], down[:, i : i + 1], points, signed=False)
                for i in (0, 1)
            ],
            dim=-1,
        )

    def _around(self, x: Tensor, y: Tensor, points: Tensor, signed: bool) -> Tensor:
        return window_histograms(x, y, points, self.window, BINS, signed, self.votes)
