"""Masked autoencoder: published size, what it may see, and in which order it answers."""

from __future__ import annotations

import pytest
import torch

from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.target_rule import ClipInputs
from kinema.models.targets import PixelTarget
from kinema.models.vit import ViTConfig

VIT = ViTConfig(image_size=16, patch_size=4, num_frames=4, embed_dim=24, depth=2, num_heads=2)
DECODER = DecoderConfig(embed_dim=12, depth=1, num_heads=2)
TARGET = PixelTarget()


def model(seed: int = 0) -> MaskedAutoencoder:
    torch.manual_seed(seed)
    return MaskedAutoencoder(VIT, DECODER, TARGET.dims(VIT)).eval()


def mask_of(*hidden: list[int]) -> torch.Tensor:
    mask = torch.zeros(len(hidden), 32, dtype=torch.bool)
    for row, tokens in zip(mask, hidden, strict=True):
        row[tokens] = True
    return mask


def test_vit_b_has_the_published_94_2_million_parameters() -> None:
    with torch.device("meta"):
        network = MaskedAutoencoder(ViTConfig(), DecoderConfig(), [1536])
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == 94_210_944
    assert round(count / 1e6, 1) == 94.2


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        ("vit_s", (192, 4, 3)),
        ("vit_b", (384, 4, 6)),
        ("vit_l", (512, 12, 8)),
        ("vit_h", (640, 12, 8)),
    ],
)
def test_decoder_sizes(size, numbers) -> None:
    config = DecoderConfig(size=size)
    assert (config.embed_dim, config.depth, config.num_heads) == numbers


def test_decoder_projection_has_no_bias_and_the_mask_token_is_small_noise() -> None:
    network = MaskedAutoencoder(VIT, DecoderConfig(), [96])
    assert network.decoders[0].embed.bias is None
    assert network.decoders[0].mask_token.std().item() == pytest.approx(0.02, rel=0.2)


def test_predicts_every_hidden_token_once() -> None:
    mask = mask_of(list(range(20)), list(range(12, 32)))
    assert model()(torch.rand(2, 3, 4, 16, 16), mask).shape == (2, 20, 96)


def test_hidden_pixels_cannot_reach_the_prediction() -> None:
    network, clip = model(), torch.randn(1, 3, 4, 16, 16)
    mask = mask_of([0, 5, 9])
    before = network(clip, mask)
    clip[:, :, 0:2, 0:4, 0:4] += 100  # token 0
    clip[:, :, 0:2, 4:8, 4:8] += 100  # token 5
    assert torch.equal(network(clip, mask), before)
    clip[:, :, 0:2, 0:4, 4:8] += 100  # token 1 is visible
    assert not torch.allclose(network(clip, mask), before)


def test_predictions_follow_the_ascending_hidden_tokens() -> None:
    # With the decoder's blocks off, a prediction depends on the token's number alone.
    network = model()
    network.decoders[0].blocks = torch.nn.ModuleList()
    clip = torch.randn(1, 3, 4, 16, 16)
    few, many = network(clip, mask_of([3, 17])), network(clip, mask_of([3, 9, 17]))
    assert torch.allclose(few[0, 0], many[0, 0])
    assert torch.allclose(few[0, 1], many[0, 2])
    assert not torch.allclose(many[0, 1], many[0, 2])


def test_decoder_knows_where_the_visible_tokens_are() -> None:
    decoder, latent = model().decoders[0], torch.randn(1, 2, 24)
    hidden = torch.tensor([[5]])
    here = decoder(latent, torch.tensor([[0, 1]]), hidden)
    assert not torch.allclose(decoder(latent, torch.tensor([[2, 3]]), hidden), here)


def test_a_clips_prediction_does_not_depend_on_its_batch_mates() -> None:
    network = model()
    clips = torch.randn(3, 3, 4, 16, 16)
    mask = mask_of([0, 1, 2], [5, 6, 7], [29, 30, 31])
    together = network(clips, mask)
    for i in range(3):
        alone = network(clips[i : i + 1], mask[i : i + 1])
        assert torch.allclose(alone[0], together[i], atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (mask_of([0, 1], [0]), "same number of tokens"),
        (mask_of([], []), "no token is kept"),
        (mask_of(list(range(32)), list(range(32))), "no token is kept"),
    ],
)
def test_uneven_empty_and_full_masks_are_refused(mask, message) -> None:
    with pytest.raises(ValueError, match=message):
        model()(torch.rand(2, 3, 4, 16, 16), mask)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_every_parameter_gets_a_gradient(checkpointing) -> None:
    torch.manual_seed(0)
    vit = VIT.model_copy(update={"activation_checkpointing": checkpointing})
    network = MaskedAutoencoder(vit, DECODER, [96])
    clip, mask = torch.rand(2, 3, 4, 16, 16), mask_of(list(range(24)), list(range(8, 32)))
    TARGET.loss(network(clip, mask), TARGET.compute(ClipInputs(clip), mask, vit)).backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_loss_falls_when_one_clip_is_learned() -> None:
    torch.manual_seed(0)
    network = MaskedAutoencoder(VIT, DECODER, [96])
    clip, mask = torch.rand(1, 3, 4, 16, 16), mask_of([2, 9, 16, 23])
    target = TARGET.compute(ClipInputs(clip), mask, VIT)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        loss = TARGET.loss(network(clip, mask), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_vit_b_takes_a_step_at_full_size() -> None:
    torch.manual_seed(0)
    vit = ViTConfig()
    network = MaskedAutoencoder(vit, DecoderConfig(), TARGET.dims(vit))
    clip = torch.rand(1, 3, 16, 224, 224)
    mask = torch.zeros(1, 8, 196, dtype=torch.bool)
    mask[..., torch.randperm(196)[:176]] = True
    mask = mask.flatten(1)
    loss = TARGET.loss(network(clip, mask), TARGET.compute(ClipInputs(clip), mask, vit))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
