"""What the decoder has to predict for a hidden token, and the loss on it.

Pixels (VideoMAE), histograms and flow (the baselines of MME, Tables 5 and 6), trajectories (MME),
and any of them together. Adding one is a class, a member of the union, a test and a YAML file.
"""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from einops import rearrange
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from kinema.errors import ConfigError
from kinema.models.histograms import Votes, cell_histograms, sobel
from kinema.models.pixels import clip_of, normalise, patches
from kinema.models.target_rule import ClipInputs, MotionRequest, TargetRule, Wanted, hidden_tokens
from kinema.models.trajectory import TrajectoryTarget
from kinema.models.vit import ViTConfig

EPS = 1e-6
BINS = 9


class PixelTarget(TargetRule):
    """Pixels of the hidden tubelets, each normalised by its own statistics (VideoMAE; MOFO, 3.2).

    A target vector holds the pixels frame by frame and row by row, the three colours of a pixel
    next to each other. `norm`:

    - `per_channel`: minus the mean, over (standard deviation + 1e-6), of each colour (VideoMAE).
    - `joint`: minus the mean, over sqrt(variance + 1e-6), of all colours together (MAE, MAE-ST).
    - `none`: pixels in [0, 1].

    Deviation and variance are the unbiased ones.
    """

    name: Literal["pixel"] = "pixel"
    norm: Literal["per_channel", "joint", "none"] = "per_channel"

    def dims(self, vit: ViTConfig) -> tuple[int, ...]:
        """The pixels of a tubelet, one part."""
        return (3 * vit.tubelet_size * vit.patch_size**2,)

    def compute(self, inputs: ClipInputs, mask: Tensor, vit: ViTConfig) -> Wanted:
        """See `TargetRule.compute`."""
        tubelets = self._hidden(inputs.clip, mask, vit)
        mean, scale = self._statistics(tubelets)
        return Wanted(((tubelets - mean) / scale).flatten(-2))

    def invert(
        self,
        prediction: Tensor,
        mask: Tensor,
        clip: Tensor,
        vit: ViTConfig,
        statistics: Literal["hidden", "visible"] = "hidden",
    ) -> Tensor:
        """The clip with its hidden tokens replaced by predictions, for figures.

        Args:
            prediction: (B, hidden, dim), hidden tokens in ascending order.
            mask: bool (B, N), True = hidden; equally many in every clip.
            clip: float (B, 3, T, H, W) in [0, 1].
            vit: the clip's size.
            statistics: where mean and scale of a predicted token come from. `hidden` takes the true
                ones of that token, as published reconstructions do, which flatters them; `visible`
                the average over the clip's visible tokens, so that nothing hidden is used.

        Returns:
            (B, 3, T, H, W), not clipped to [0, 1].
        """
        source = mask if statistics == "hidden" else ~mask
        mean, scale = self._statistics(self._hidden(clip, source, vit))
        if statistics == "visible":
            mean, scale = mean.mean(dim=1, keepdim=True), scale.mean(dim=1, keepdim=True)
        pixels = rearrange(prediction, "b n (pixels c) -> b n pixels c", c=3) * scale + mean
        whole = patches(clip, vit).to(pixels.dtype, copy=True)
        whole[mask.to(whole.device)] = pixels.flatten(0, 1)
        return clip_of(whole, vit)

    def _hidden(self, clip: Tensor, mask: Tensor, vit: ViTConfig) -> Tensor:
        """Tubelets (B, hidden, pixels, 3) of the masked tokens, at least float32."""
        hidden = hidden_tokens(patches(clip, vit).flatten(-2), mask)
        return rearrange(hidden, "b n (pixels c) -> b n pixels c", c=3)

    def _statistics(self, tubelets: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and scale that normalise tubelets (B, n, pixels, 3), each (B, n, 1, 1 or 3)."""
        if self.norm == "none":
            one = tubelets.new_ones(*tubelets.shape[:2], 1, 1)
            return torch.zeros_like(one), one
        dims = (-2,) if self.norm == "per_channel" else (-2, -1)
        variance, mean = torch.var_mean(tubelets, dim=dims, keepdim=True)
        if self.norm == "per_channel":
            return mean, variance.sqrt() + EPS
        return mean, (variance + EPS).sqrt()


class _DenseTarget(TargetRule):
    """Something of every pixel: of the sampled clip, or of all raw frames a slot spans."""

    steps: PositiveInt | None = Field(
        default=None,
        description="raw frames from the slot's first on that are described, which the sampled "
        "clip need not show (MME's interpolation); null = the sampled clip alone",
    )


class _HistogramTarget(_DenseTarget):
    """Histograms of `cell` x `cell` pixels: of a slot's middle frame, or of `steps` raw ones."""

    cell: PositiveInt = Field(default=8, description="side of the squares, px")
    votes: Votes = Field(default="hard", description="one bin, or the two nearest by nearness")
    norm: Literal["none", "l2"] = Field(
        default="none", description="l2: each cell's histogram to unit length (MaskFeat)"
    )

    def check(self, vit: ViTConfig) -> None:
        """Cells must fill a patch."""
        if vit.patch_size % self.cell:
            raise ConfigError(
                [f"target.cell: {self.cell} px do not divide patch_size {vit.patch_size}"]
            )

    def _size(self, vit: ViTConfig, channels: int) -> int:
        cells = (vit.patch_size // self.cell) ** 2
        return (self.steps or 1) * channels * cells * BINS

    def _tokens(self, x: Tensor, y: Tensor, vit: ViTConfig, signed: bool) -> Tensor:
        """Vectors (B, slots, L, C, H, W) -> (B, N, L * C * cells * bins)."""
        cells = cell_histograms(x, y, self.cell, BINS, signed, self.votes)
        if self.norm == "l2":
            cells = cells / cells.norm(dim=-1, keepdim=True).clamp_min(EPS)
        side = vit.patch_size // self.cell
        return rearrange(cells, "b s l c (h p) (w q) n -> b (s h w) (l c p q n)", p=side, q=side)


class HOGTarget(_HistogramTarget):
    """Histograms of oriented gradients of every colour (MaskFeat; MME, appendix C).

    9 bins over half a circle, Sobel gradients of the ImageNet-normalised frames.
    """

    name: Literal["hog"] = "hog"

    def requests(self, vit: ViTConfig) -> dict[str, MotionRequest]:
        """The pixels between the sampled frames, if they are described."""
        if self.steps is None:
            return {}
        return {"hog": MotionRequest(at="raw", length=self.steps, frames=True)}

    @property
    def needs(self) -> frozenset[str]:
        """Nothing: pixels come with the clip."""
        return frozenset()

    def dims(self, vit: ViTConfig) -> tuple[int, ...]:
        """108 at 16 px patches."""
        return (self._size(vit, 3),)

    def compute(self, inputs: ClipInputs, mask: Tensor, vit: ViTConfig) -> Wanted:
        """See `TargetRule.compute`."""
        if self.steps is None:
            frames = rearrange(inputs.clip, "b c (s t) h w -> b s t c h w", t=vit.tubelet_size)[
                :, :, vit.tubelet_size // 2, None
            ]
        else:
            frames = inputs.motion["hog/frames"]
        tokens = self._tokens(*sobel(normalise(frames, channels=3)), vit, signed=False)
        return Wanted(hidden_tokens(tokens, mask))


class _FlowTarget(_DenseTarget):
    """Something of the dense flow."""

    @property
    def needs(self) -> frozenset[str]:
        """Dense flow."""
        return frozenset({"flow"})

    def requests(self, vit: ViTConfig) -> dict[str, MotionRequest]:
        """Flow from the sampled frames, or from the raw ones."""
        if self.steps is None:
            return {"dense": MotionRequest(at="sampled", length=vit.tubelet_size, flow=True)}
        return {"dense": MotionRequest(at="raw", length=self.steps, flow=True)}


class FlowTarget(_FlowTarget):
    """The flow of every pixel, px per stride, from each of the slot's frames (MME, Table 5)."""

    name: Literal["flow"] = "flow"
    norm: Literal["none", "patch"] = Field(
        default="none", description="patch: zero mean and unit deviation over a token's numbers"
    )
    min_deviation: PositiveFloat = Field(
        default=0.1, description="px; flows that differ by less are not blown up to unit size"
    )

    def dims(self, vit: ViTConfig) -> tuple[int, ...]:
        """frames * pixels * 2."""
        return ((self.steps or vit.tubelet_size) * vit.patch_size**2 * 2,)

    def compute(self, inputs: ClipInputs, mask: Tensor, vit: ViTConfig) -> Wanted:
        """See `TargetRule.compute`."""
        tokens = rearrange(
            inputs.motion["dense/flow"],
            "b s l (h p) (w q) d -> b (s h w) (l p q d)",
            p=vit.patch_size,
            q=vit.patch_size,
        )
        hidden = hidden_tokens(tokens, mask)
        if self.norm == "patch":
            variance, mean = torch.var_mean(hidden, dim=-1, keepdim=True, correction=0)
            hidden = (hidden - mean) / variance.sqrt().clamp_min(self.min_deviation)
        return Wanted(hidden)


class _FlowHistogramTarget(_HistogramTarget, _FlowTarget):
    """Histograms of the flow from a slot's middle frame, or from `steps` raw ones."""

    def _flow(self, inputs: ClipInputs, vit: ViTConfig) -> Tensor:
        """(B, slots, L, 2, H, W)."""
        flow = inputs.motion["dense/flow"].movedim(-1, 3)
        if self.steps is None:
            flow = flow[:, :, vit.tubelet_size // 2, None]
        return flow


class HOFTarget(_FlowHistogramTarget):
    """Histograms of flow, 9 bins over the whole circle: opposite motions differ (MME, Table 5)."""

    name: Literal["hof"] = "hof"

    def dims(self, vit: ViTConfig) -> tuple[int, ...]:
        """36 at 16 px patches."""
        return (self._size(vit, 1),)

    def compute(self, inputs: ClipInputs, mask: Tensor, vit: ViTConfig) -> Wanted:
        """See `TargetRule.compute`."""
        flow = self._flow(inputs, vit)
        tokens = self._tokens(flow[:, :, :, :1], flow[:, :, :, 1:], vit, signed=True)
        return Wanted(hidden_tokens(tokens, mask))


class MBHTarget(_FlowHistogramTarget):
    """Motion boundary histograms: oriented gradients of both components of flow (MME, Table 5)."""

    name: Literal["mbh"] = "mbh"

    def dims(self, vit: ViTConfig) -> tuple[int, ...]:
        """72 at 16 px patches."""
        return (self._size(vit, 2),)

    def compute(self, inputs: ClipInputs, mask: Tensor, vit: ViTConfig) -> Wanted:
        """See `TargetRule.compute`."""
        tokens = self._tokens(*sobel(self._flow(inputs, vit)), vit, signed=False)
        return Wanted(hidden_tokens(tokens, mask))


Part = Annotated[
    PixelTarget | HOGTarget | FlowTarget | HOFTarget | MBHTarget | TrajectoryTarget,
    Field(discriminator="name"),
]


class JointTarget(TargetRule):
    """Several targets at once; the loss is the mean of theirs (MME, Table 5)."""

    name: Literal["joint"] = "joint"
    parts: Annotated[tuple[Part, ...], Field(min_length=2)]

    @property
    def needs(self) -> frozenset[str]:
        """What any part needs."""
        return frozenset[str]().union(*(part.needs for part in self.parts))

    def check(self, vit: ViTConfig) -> None:
        """Every part must fit."""
        problems: list[str] = []
        for part in self.parts:
            try:
                part.check(vit)
            except ConfigError as error:
                problems += error.problems
        if problems:
            raise ConfigError(problems)

    def requests(self, vit: ViTConfig) -> dict[str, MotionRequest]:
        """Every part's, by its number and their names."""
        return {
            f"{number}.{name}": request
            for number, part in enumerate(self.parts)
            for name, request in part.requests(vit).items()
        }

    def dims(self, vit: ViTConfig) -> tuple[int, ...]:
        """Every part's."""
        return tuple(size for part in self.parts for size in part.dims(vit))

    def compute(self, inputs: ClipInputs, mask: Tensor, vit: ViTConfig) -> Wanted:
        """See `TargetRule.compute`; the parts weigh alike, whatever their numbers of dimensions."""
        values, weights = [], []
        for number, part in enumerate(self.parts):
            prefix = f"{number}."
            mine = {
                name.removeprefix(prefix): tensor
                for name, tensor in inputs.motion.items()
                if name.startswith(prefix)
            }
            wanted = part.compute(ClipInputs(inputs.clip, mine), mask, vit)
            counted = torch.ones_like(wanted.values) if wanted.weights is None else wanted.weights
            values.append(wanted.values)
            weights.append(counted / counted.sum().clamp_min(1))
        return Wanted(torch.cat(values, dim=-1), torch.cat(weights, dim=-1) / len(self.parts))

    def loss(self, prediction: Tensor, wanted: Wanted) -> Tensor:
        """Mean over the parts of their losses."""
        assert wanted.weights is not None
        squared = (prediction.to(wanted.values.dtype) - wanted.values) ** 2
        return (squared * wanted.weights).sum()


Target = Annotated[
    PixelTarget | HOGTarget | FlowTarget | HOFTarget | MBHTarget | TrajectoryTarget | JointTarget,
    Field(discriminator="name"),
]
"""Every target there is, told apart by `name`."""
