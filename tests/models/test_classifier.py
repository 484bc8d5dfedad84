"""Classifier: parameter counts, the two heads, and their errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from kinema.errors import ConfigError
from kinema.models.classifier import Classifier, Head, MCAHead, PlainHead
from kinema.models.vit import ViTConfig

VIT = ViTConfig(image_size=16, patch_size=4, num_frames=4, embed_dim=24, depth=2, num_heads=2)


def inner_of(*tokens: list[int]) -> torch.Tensor:
    inner = torch.zeros(len(tokens), 32, dtype=torch.bool)
    for row, numbers in zip(inner, tokens, strict=True):
        row[numbers] = True
    return inner


@pytest.mark.parametrize(
    ("head", "count", "millions"),
    [
        (PlainHead(), 86_361_006, 86.36),
        (MCAHead(), 98_169_774, 98.17),
        (MCAHead(head_dim="split"), 93_448_110, 93.45),
    ],
)
def test_vit_b_with_174_classes_has_the_known_size(head, count, millions) -> None:
    with torch.device("meta"):
        model = Classifier(ViTConfig(), head, 174)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == count
    assert round(counted / 1e6, 2) == millions


def test_the_encoders_norm_gives_way_to_one_after_pooling() -> None:
    names = set(Classifier(VIT, PlainHead(), 5).state_dict())
    assert {"norm.weight", "head.weight"} <= names
    assert not [name for name in names if name.startswith("encoder.norm.")]


def test_plain_head_is_norm_and_linear_layer_of_the_mean() -> None:
    torch.manual_seed(0)
    model = Classifier(VIT, PlainHead(), 5).eval()
    clip = torch.randn(2, 3, 4, 16, 16)
    features = model.encoder(clip).mean(1)
    expected = model.head(torch.nn.functional.layer_norm(features, (24,), eps=1e-6))
    assert torch.allclose(model(clip), expected, atol=1e-7)


def test_first_logits_are_small() -> None:
    torch.manual_seed(0)
    unit = Classifier(VIT, PlainHead(init_scale=1.0), 5).head.weight
    torch.manual_seed(0)
    scaled = Classifier(VIT, PlainHead(), 5).head.weight
    assert torch.allclose(scaled, 0.001 * unit)


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = Classifier(VIT, PlainHead(dropout=0.9, init_scale=1.0), 5)
    clip = torch.randn(1, 3, 4, 16, 16)
    assert not torch.equal(model(clip), model(clip))
    model.eval()
    assert torch.equal(model(clip), model(clip))


def test_a_clips_logits_do_not_depend_on_its_batch_mates() -> None:
    torch.manual_seed(0)
    model = Classifier(VIT, MCAHead(init_scale=1.0), 5).eval()
    clips = torch.randn(4, 3, 4, 16, 16)
    inner = inner_of([3, 4], [], list(range(32)), list(range(20)))
    together = model(clips, inner)
    for i in range(4):
        alone = model(clips[i : i + 1], inner[i : i + 1])[0]
        assert torch.allclose(alone, together[i], atol=1e-6)


def test_the_box_changes_what_the_mca_head_says() -> None:
    torch.manual_seed(0)
    model = Classifier(VIT, MCAHead(init_scale=1.0), 5).eval()
    clip = torch.randn(1, 3, 4, 16, 16)
    assert not torch.allclose(model(clip, inner_of([3, 4])), model(clip, inner_of([20, 21])))


def test_the_plain_head_ignores_the_box() -> None:
    model = Classifier(VIT, PlainHead(), 5).eval()
    clip = torch.randn(1, 3, 4, 16, 16)
    assert torch.equal(model(clip, inner_of([3])), model(clip))


@pytest.mark.parametrize("head", [MCAHead(), MCAHead(depth=2), MCAHead(block="bare")])
def test_every_parameter_gets_a_gradient(head) -> None:
    torch.manual_seed(0)
    model = Classifier(VIT, head, 5)
    logits = model(torch.randn(2, 3, 4, 16, 16), inner_of([1, 2], [5]))
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3])).backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_batch_without_any_box_still_reaches_every_parameter() -> None:
    model = Classifier(VIT, MCAHead(), 5)
    model(torch.randn(2, 3, 4, 16, 16), inner_of([], [])).sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None]


def test_mca_without_inner_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="mca head needs `inner`"):
        Classifier(VIT, MCAHead(), 5)(torch.zeros(1, 3, 4, 16, 16))


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 does not divide embed_dim 24"):
        Classifier(VIT, MCAHead(heads=5, head_dim="split"), 5)
    Classifier(VIT, MCAHead(heads=5), 5)


def test_settings_can_be_checked_without_building_the_model() -> None:
    with pytest.raises(ConfigError, match="5 does not divide embed_dim 24"):
        MCAHead(heads=5, head_dim="split").check(VIT)
    MCAHead().check(VIT)
    PlainHead().check(VIT)


def test_bare_block_deeper_than_one_is_refused() -> None:
    with pytest.raises(ValidationError, match="depth must be 1, got 2"):
        MCAHead(block="bare", depth=2)


def test_union_is_told_apart_by_name() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Head)
    assert adapter.validate_python({"name": "mca", "heads": 4}) == MCAHead(heads=4)
    with pytest.raises(ValidationError, match="'plain', 'mca'"):
        adapter.validate_python({"name": "linear"})


def test_only_the_mca_head_reads_the_motion_store() -> None:
    assert (PlainHead.needs, MCAHead.needs) == (frozenset(), {"boxes"})


@pytest.mark.slow
def test_vit_b_with_mca_takes_a_step_at_full_size() -> None:
    torch.manual_seed(0)
    model = Classifier(ViTConfig(), MCAHead(), 174)
    inner = torch.zeros(1, 8, 14, 14, dtype=torch.bool)
    inner[..., 3:8, 4:9] = True
    logits = model(torch.randn(1, 3, 16, 224, 224), inner.flatten(1))
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([7]))
    loss.backward()
    assert loss.item() == pytest.approx(5.16, abs=0.05)  # log(174)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
