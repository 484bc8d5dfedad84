"""Encoder: sizes, settings, positions, and running on visible tokens alone."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from kinema.masking.grid import Grid
from kinema.models.vit import (
    Attention,
    Block,
    Encoder,
    ViTConfig,
    gather_tokens,
    sincos_positions,
    token_indices,
)

TINY = ViTConfig(image_size=16, patch_size=4, num_frames=4, embed_dim=12, depth=2, num_heads=3)


def tiny_clip(batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, 4, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("size", "numbers"),
    [
        ("vit_s", (384, 12, 6)),
        ("vit_b", (768, 12, 12)),
        ("vit_l", (1024, 24, 16)),
        ("vit_h", (1280, 32, 16)),
    ],
)
def test_named_sizes(size, numbers) -> None:
    config = ViTConfig(size=size)
    assert (config.embed_dim, config.depth, config.num_heads) == numbers
    assert config.size == size


def test_default_is_vit_b_on_16_frames() -> None:
    config = ViTConfig()
    assert (config.size, config.embed_dim, config.grid) == ("vit_b", 768, Grid(8, 14, 14))


def test_a_written_number_changes_the_named_size_and_its_name() -> None:
    config = ViTConfig(size="vit_l", depth=12)
    assert (config.size, config.embed_dim, config.depth) == ("custom", 1024, 12)


def test_custom_size_round_trips() -> None:
    config = ViTConfig(size="custom", embed_dim=96, depth=4, num_heads=4)
    assert ViTConfig.model_validate(config.model_dump()) == config
    assert ViTConfig.model_validate(ViTConfig(size="vit_h").model_dump()) == ViTConfig(size="vit_h")


@pytest.mark.parametrize(
    ("override", "size", "numbers"),
    [
        ({"size": "vit_s"}, "vit_s", (384, 12, 6)),
        ({"depth": 6}, "custom", (768, 6, 12)),
        ({"embed_dim": 384, "num_heads": 6}, "custom", (384, 12, 6)),
    ],
)
def test_overriding_a_dumped_config_takes_effect(override, size, numbers) -> None:
    config = ViTConfig.model_validate({**ViTConfig().model_dump(), **override})
    assert (config.embed_dim, config.depth, config.num_heads) == numbers
    assert config.size == size


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "custom", "depth": 2}, "also needs embed_dim, num_heads"),
        ({"size": "vit_x"}, "'vit_s', 'vit_b', 'vit_l', 'vit_h', 'mvit_v2_s' or 'custom'"),
        (
            {"size": "vit_s", "embed_dim": 768, "depth": 12, "num_heads": 12},
            "vit_s has embed_dim 384",
        ),
        ({"embed_dim": 100}, "embed_dim 100 is not a multiple of num_heads 12"),
        ({"image_size": 225}, "image_size 225 is not a multiple of patch_size 16"),
        ({"num_frames": 15}, "num_frames 15 is not a multiple of tubelet_size 2"),
        ({"drop_path": 1.0}, "drop_path"),
    ],
)
def test_impossible_settings_are_refused(settings, message) -> None:
    with pytest.raises(ValidationError, match=message):
        ViTConfig(**settings)


def test_both_indivisible_sizes_are_named_at_once() -> None:
    with pytest.raises(ValidationError, match=r"image_size 225 .*; num_frames 15"):
        ViTConfig(image_size=225, num_frames=15)


def test_tubelet_of_8_frames_gives_mofos_392_tokens() -> None:
    assert ViTConfig(tubelet_size=8).grid.tokens == 392


def test_positions_are_the_sincos_table_of_the_flattened_tokens() -> None:
    table = sincos_positions(50, 12)
    for position in (0, 1, 17, 49):
        for channel in range(12):
            angle = position / 10000 ** (2 * (channel // 2) / 12)
            expected = math.cos(angle) if channel % 2 else math.sin(angle)
            assert table[position, channel].item() == pytest.approx(expected, abs=1e-6)


def test_positions_stay_out_of_the_state_dict() -> None:
    assert not [name for name in Encoder(TINY).state_dict() if "positions" in name]


def test_tokens_are_numbered_slot_by_slot_and_row_by_row() -> None:
    encoder = Encoder(TINY)
    nn.init.constant_(encoder.patch_embed.proj.weight, 1.0)
    clip = torch.zeros(1, 3, 4, 16, 16)
    clip[:, :, 2:4, 8:12, 4:8] = 1  # slot 1, row 2, column 1
    lit = (encoder.patch_embed(clip)[0, :, 0] > 0).nonzero().flatten().tolist()
    assert lit == [(1 * 4 + 2) * 4 + 1]


def test_attention_agrees_with_the_formula() -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3).double()
    nn.init.normal_(attention.q_bias)
    nn.init.normal_(attention.v_bias)
    x = torch.randn(1, 5, 12, dtype=torch.float64)
    w_q, w_k, w_v = attention.qkv.weight.split(12)
    q, k, v = x[0] @ w_q.T + attention.q_bias, x[0] @ w_k.T, x[0] @ w_v.T + attention.v_bias
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        scores = q[:, part] @ k[:, part].T / 2  # sqrt(12 / 3) = 2
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[:, part])
    expected = torch.cat(heads, 1) @ attention.proj.weight.T + attention.proj.bias
    assert torch.allclose(attention(x)[0], expected, atol=1e-12)


def test_block_is_pre_norm_with_the_small_epsilon() -> None:
    torch.manual_seed(0)
    block = Block(12, 3, 4.0)
    x = torch.randn(2, 5, 12)
    y = x + block.attn(block.norm1(x))
    assert torch.allclose(block(x), y + block.mlp(block.norm2(y)))
    assert block.norm1.eps == block.norm2.eps == 1e-6
    assert block.mlp.fc1.weight.shape == (48, 12)


def test_weights_start_xavier_with_zero_biases() -> None:
    encoder = Encoder(ViTConfig(image_size=32, embed_dim=96, depth=2, num_heads=4))
    qkv = encoder.blocks[0].attn.qkv.weight
    assert qkv.abs().max().item() == pytest.approx(math.sqrt(6 / (96 + 288)), rel=0.01)
    embedding = encoder.patch_embed.proj.weight
    assert embedding.abs().max().item() == pytest.approx(math.sqrt(6 / (1536 + 96)), rel=0.01)
    biases = [p for name, p in encoder.named_parameters() if name.endswith("bias")]
    assert biases
    assert not any(bias.any() for bias in biases)


def test_drop_path_rises_linearly_to_the_last_block() -> None:
    encoder = Encoder(TINY.model_copy(update={"drop_path": 0.2, "depth": 3}))
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in encoder.blocks]
    assert rates == pytest.approx([0, 0.1, 0.2])


def test_visible_tokens_are_encoded_as_if_the_others_did_not_exist() -> None:
    encoder = Encoder(TINY).eval()
    visible = torch.zeros(2, 32, dtype=torch.bool)
    visible[0, [3, 4, 20]] = visible[1, [0, 1, 31]] = True
    clip = tiny_clip()
    encoded = encoder(clip, visible)
    assert encoded.shape == (2, 3, 12)
    disturbed = clip.clone()
    disturbed[0, :, 0:2, 0:4, 0:4] += 10  # token 0, hidden in the first clip only
    again = encoder(disturbed, visible)
    assert torch.equal(again[0], encoded[0])
    disturbed[1, :, 0:2, 0:4, 0:4] += 10
    assert not torch.allclose(encoder(disturbed, visible)[1], encoded[1])


def test_all_tokens_visible_is_the_same_as_no_mask() -> None:
    encoder = Encoder(TINY).eval()
    clip = tiny_clip()
    everything = torch.ones(2, 32, dtype=torch.bool)
    assert torch.equal(encoder(clip, everything), encoder(clip))


def test_token_indices_are_ascending() -> None:
    keep = torch.tensor([[True, False, True, True], [False, True, True, True]])
    indices = token_indices(keep)
    assert indices.tolist() == [[0, 2, 3], [1, 2, 3]]
    tokens = torch.arange(8.0).reshape(2, 4, 1)
    assert gather_tokens(tokens, indices).flatten().tolist() == [0, 2, 3, 5, 6, 7]


def test_unequal_counts_are_refused_with_both_numbers() -> None:
    keep = torch.tensor([[True, False, True], [False, True, False]])
    with pytest.raises(ValueError, match="same number of tokens, got 1 to 2 of 3"):
        token_indices(keep)


def test_no_kept_token_is_refused() -> None:
    with pytest.raises(ValueError, match="no token is kept of 3"):
        token_indices(torch.zeros(2, 3, dtype=torch.bool))


def test_clip_of_another_size_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"takes clips of shape \(3, 4, 16, 16\).*got \(3, 4, 16, 20\)"
    ):
        Encoder(TINY)(torch.zeros(1, 3, 4, 16, 20))


def test_activation_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for flag in (False, True):
        torch.manual_seed(0)
        encoder = Encoder(TINY.model_copy(update={"activation_checkpointing": flag}))
        encoder(tiny_clip()).square().mean().backward()
        gradients.append([p.grad for p in encoder.parameters()])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


def test_activation_checkpointing_recomputes_the_blocks() -> None:
    encoder = Encoder(TINY.model_copy(update={"activation_checkpointing": True}))
    runs = []
    encoder.blocks[0].register_forward_pre_hook(lambda *_: runs.append(1))
    encoder(tiny_clip()).sum().backward()
    assert len(runs) == 2
