"""Multi-view tests against the same average written out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kinema.evaluation.multiview import EvaluationConfig, evaluate
from kinema.models.pixels import normalise, unit_range
from kinema.models.vit import ViTConfig
from kinema.training.data import ClipSource, EvaluationClips, FrameCache, LoaderConfig
from kinema.training.order import SampleKey
from kinema.video.manifest import Entry, Manifest
from kinema.video.sampling import SegmentSampling
from kinema.video.synthetic import SyntheticConfig, make

VIT = ViTConfig(
    size="custom", embed_dim=16, depth=1, num_heads=1, image_size=32, num_frames=4, patch_size=8
)


class Brightness(nn.Module):
    """Six scores per clip that differ between views."""

    def forward(self, clip: Tensor, inner: Tensor | None) -> Tensor:
        scores = 9 * clip[:, :, :, 4:9, :5].mean(dim=(2, 3, 4))
        return torch.cat([scores, -scores], dim=1)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    settings = SyntheticConfig(num_train=0, num_validation=0, num_test=6)
    uri = make(settings, str(tmp_path_factory.mktemp("clips")))
    return Manifest.read(uri).rows()


def source(entries: list[Entry]) -> ClipSource:
    return ClipSource(entries, VIT, SegmentSampling(), "clip", None, FrameCache(1e9))


def run(entries: list[Entry], micro_batch_size: int = 4):
    config = EvaluationConfig(num_clips=2, num_crops=3, micro_batch_size=micro_batch_size)
    return evaluate(
        Brightness(), source(entries), config, LoaderConfig(num_workers=0), torch.device("cpu")
    )


def test_softmax_is_averaged_over_every_view(entries: list[Entry]) -> None:
    found = run(entries)
    clips = EvaluationClips(source(entries), 2, 3)
    model = Brightness()
    rows = found.predictions.to_pylist()
    assert [row["id"] for row in rows] == [entry.id for entry in entries]
    for index, row in enumerate(rows):
        views = []
        for view in range(6):
            clip = torch.from_numpy(clips[SampleKey(0, index, view)].clip)[None]
            views.append(model(normalise(unit_range(clip)), None)[0])
        average = torch.stack([view.softmax(0) for view in views]).mean(0)
        np.testing.assert_allclose(row["probabilities"], average.numpy(), atol=1e-6)
        np.testing.assert_allclose(row["view_logits"], torch.cat(views).numpy(), atol=1e-5)
        assert row["predicted"] == int(average.argmax())
        assert row["label"] == entries[index].label
    hits = [row["predicted"] == row["label"] for row in rows]
    assert found.top1.value == pytest.approx(np.mean(hits))
    assert found.coverage == 1
    assert found.comparable
    assert len({tuple(np.round(row["view_logits"], 5)) for row in rows}) == 6


@pytest.mark.parametrize("micro_batch_size", [1, 5, 100])
def test_batching_changes_nothing(entries: list[Entry], micro_batch_size: int) -> None:
    expected, found = run(entries), run(entries, micro_batch_size)
    assert found.predictions["id"] == expected.predictions["id"]
    for name in ("probabilities", "view_logits"):
        pairs = zip(
            found.predictions[name].to_pylist(), expected.predictions[name].to_pylist(), strict=True
        )
        for mine, theirs in pairs:
            np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_unreadable_video_is_named_and_counts_against_coverage(
    entries: list[Entry], tmp_path: Path
) -> None:
    gone = Entry("gone", str(tmp_path / "gone.mp4"), "test", 0, None, None, None, 48, 48, 8, 12.0)
    found = run([*entries[:3], gone])
    assert found.coverage == 0.75
    assert not found.comparable
    assert set(found.failures) == {"gone"}
    assert "gone" not in found.predictions["id"].to_pylist()
    assert len(found.predictions) == 3
    with pytest.raises(ValueError, match="none of 1 test videos could be read"):
        run([gone])
