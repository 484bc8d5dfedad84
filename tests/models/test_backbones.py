"""TimeSformer's divided attention and MViTv2: against loops, against torchvision, without leaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torchvision.models.video import mvit_v2_s

from kinema.models.backbones import DividedBlock, DividedEncoder, build_encoder, pool_tokens
from kinema.models.classifier import BoxMeanHead, Classifier, MCAHead, PlainHead
from kinema.models.mae import DecoderConfig, MaskedAutoencoder
from kinema.models.vit import Encoder, ViTConfig
from kinema.models.weights import load_encoder_weights, save_weights
from kinema.training.optim import layer_index

DECODER = DecoderConfig(size="custom", embed_dim=16, depth=1, num_heads=2)
DIVIDED = ViTConfig(
    attention="divided", embed_dim=24, depth=2, num_heads=2, image_size=32, num_frames=4,
    patch_size=8,
)  # fmt: skip
POOLING = ViTConfig(
    attention="pooling", embed_dim=32, depth=3, num_heads=4, stages=(1, 2), image_size=32,
    num_frames=4, patch_size=4,
)  # fmt: skip
MVIT_S = {"size": "mvit_v2_s", "attention": "pooling"}
BOTH = pytest.mark.parametrize("vit", [DIVIDED, POOLING], ids=["divided", "pooling"])


def clips(vit: ViTConfig, count: int = 2) -> Tensor:
    side = vit.image_size
    return torch.randn(count, 3, vit.num_frames, side, side, generator=torch.Generator())


def some_mask(vit: ViTConfig, count: int = 2, hidden: int = 40) -> Tensor:
    mask = torch.zeros(count, vit.grid.tokens, dtype=torch.bool)
    for row in mask:
        row[torch.randperm(vit.grid.tokens)[: min(hidden, vit.grid.tokens // 2)]] = True
    return mask


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(
    ("settings", "millions"),
    [({"attention": "divided"}, 121.8), (MVIT_S, 34.4)],
    ids=["timesformer", "mvit_v2_s"],
)
def test_published_sizes(settings: dict[str, Any], millions: float) -> None:
    """Published with 400 classes: TimeSformer 121.4 M (tubelets of 1 frame), MViTv2-S 34.5 M."""
    with torch.device("meta"):
        network = Classifier(ViTConfig(**settings), PlainHead(), 174)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.1)


def test_mvit_v2_s_is_torchvisions() -> None:
    """The same tensors, and the same output but for the class token, before its norm."""
    theirs = mvit_v2_s(weights=None, num_classes=1).eval()
    ours = build_encoder(ViTConfig(**MVIT_S)).eval()
    names = {"patch_embed": "conv_proj", "class_token": "pos_encoding.class_token"}
    tensors = theirs.state_dict()
    renamed = {
        mine: tensors[next((mine.replace(a, b, 1) for a, b in names.items() if a in mine), mine)]
        for mine in ours.state_dict()
    }
    assert len(renamed) == len([name for name in tensors if not name.startswith("head.")])
    ours.load_state_dict(renamed)
    seen: list[Tensor] = []
    theirs.norm.register_forward_hook(lambda _m, _i, output: seen.append(output))
    clip = torch.randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        theirs(clip)
        out = ours(clip)
    assert out.shape == (1, 8 * 7 * 7, 768)
    torch.testing.assert_close(out, seen[0][:, 1:])


def test_divided_attention_is_attention_over_time_then_over_space() -> None:
    """Loops over places and slots with torch's own attention module."""
    slots, places, dim, heads = 3, 4, 12, 2
    block = DividedBlock(dim, heads, 4.0, 0.0, slots).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, slots * places, dim)

    def attend(attention: Any, sequence: Tensor) -> Tensor:
        bias = torch.cat([attention.q_bias, torch.zeros(dim), attention.v_bias])
        out, _ = F.multi_head_attention_forward(
            sequence[:, None], sequence[:, None], sequence[:, None], dim, heads,
            attention.qkv.weight, bias, None, None, False, 0.0,
            attention.proj.weight, attention.proj.bias,
        )  # fmt: skip
        return out[:, 0]

    expected = x.clone()
    for b in range(2):
        before = block.temporal_norm(expected[b]).clone()
        for place in range(places):
            line = torch.tensor([slot * places + place for slot in range(slots)])
            change = attend(block.temporal_attn, before[line])
            expected[b, line] = expected[b, line] + block.temporal_proj(change)
        before = block.norm1(expected[b]).clone()
        for slot in range(slots):
            frame = slice(slot * places, (slot + 1) * places)
            expected[b, frame] = expected[b, frame] + attend(block.attn, before[frame])
    expected = expected + block.mlp(block.norm2(expected))
    torch.testing.assert_close(block(x), expected)


@BOTH
def test_hidden_pixels_do_not_reach_the_prediction(vit: ViTConfig) -> None:
    network = MaskedAutoencoder(vit, DECODER, [5]).eval()
    clip, mask = clips(vit), some_mask(vit)
    grid = mask.view(2, vit.grid.slots, vit.grid.height, vit.grid.width)
    for dim, times in enumerate((vit.tubelet_size, vit.patch_size, vit.patch_size), start=1):
        grid = grid.repeat_interleave(times, dim)
    other = torch.where(grid[:, None], torch.randn_like(clip), clip)
    torch.testing.assert_close(network(other, mask), network(clip, mask), rtol=0, atol=0)
    seen = torch.where(grid[:, None], clip, torch.randn_like(clip))
    assert (network(seen, mask) - network(clip, mask)).abs().min() > 0


@BOTH
def test_each_prediction_stands_at_its_hidden_token(vit: ViTConfig) -> None:
    """Exchange a hidden token for a visible one: all others keep their places in the output."""
    network = MaskedAutoencoder(vit, DECODER, [5]).eval()
    with torch.no_grad():
        for decoder in network.decoders:
            decoder.blocks = nn.ModuleList()  # what remains looks at one token at a time
            decoder.norm = nn.Identity()
            decoder.head = nn.Identity()
            decoder.embed.weight.zero_()
            decoder.positions.copy_(torch.arange(vit.grid.tokens)[:, None].expand(-1, 16))
    mask = some_mask(vit)
    predicted = network(clips(vit), mask)[..., 0]
    expected = torch.stack([row.nonzero()[:, 0] for row in mask]).float()
    torch.testing.assert_close(predicted, expected)


def test_output_tokens_are_embedded_as_the_tokens_they_cover() -> None:
    network = MaskedAutoencoder(POOLING, DECODER, [5])
    decoder = network.decoders[0]
    decoder.blocks, decoder.norm, decoder.head = nn.ModuleList(), nn.Identity(), nn.Identity()
    decoder.positions.zero_()
    with torch.no_grad():
        decoder.embed.weight.zero_()
        # Row 16 k of the weight is channel 0 of the k-th of the covered tokens.
        decoder.embed.weight[torch.arange(4) * 16, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])
    latent = torch.zeros(1, POOLING.grid.tokens // 4, 32)
    latent[0, 4 + 2, 0] = 1.0  # row 1, column 2 of the 4 x 4 output tokens of slot 0
    everything = torch.arange(POOLING.grid.tokens)[None]
    out = decoder(latent, everything[:, :0], everything)[0, :, 0].view(2, 8, 8)
    assert out[0, 2:4, 4:6].flatten().tolist() == [1, 2, 3, 4]
    assert out.abs().sum() == 10


@BOTH
def test_every_parameter_learns(vit: ViTConfig) -> None:
    network = MaskedAutoencoder(vit, DECODER, [5])
    network(clips(vit), some_mask(vit)).square().mean().backward()
    assert not [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    classifier = Classifier(vit, MCAHead(heads=2, init_scale=1.0), 3)
    logits = classifier(clips(vit), some_mask(vit))
    F.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert not [n for n, p in classifier.named_parameters() if p.grad is None or not p.grad.any()]


@BOTH
@pytest.mark.parametrize("head", [PlainHead(init_scale=1), MCAHead(heads=2, init_scale=1.0)])
def test_a_clips_logits_do_not_depend_on_its_batch_mates(vit: ViTConfig, head: Any) -> None:
    network = Classifier(vit, head, 5).eval()
    clip, inner = clips(vit, 3), some_mask(vit, 3)
    inner[1] = False
    together = network(clip, inner)
    alone = torch.cat([network(clip[i : i + 1], inner[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)


def test_inner_tokens_on_the_output_grid() -> None:
    inner = torch.zeros(1, POOLING.grid.tokens, dtype=torch.bool)
    inner.view(2, 8, 8)[1, 3, 4] = True
    pooled = pool_tokens(inner, POOLING).view(2, 4, 4)
    assert pooled.nonzero().tolist() == [[1, 1, 2]]
    assert torch.equal(pool_tokens(inner, DIVIDED.model_copy(update={"patch_size": 4})), inner)
    network = Classifier(POOLING, BoxMeanHead(init_scale=1.0), 5).eval()
    tokens = network.encoder(clips(POOLING, 1))
    chosen = tokens[0, pooled.flatten()].mean(0)
    expected = network.head(F.layer_norm(chosen, (32,), eps=1e-6))
    torch.testing.assert_close(network(clips(POOLING, 1), inner)[0], expected)


@BOTH
def test_recomputing_blocks_changes_nothing(vit: ViTConfig) -> None:
    network = build_encoder(vit)
    again = build_encoder(vit.model_copy(update={"activation_checkpointing": True}))
    again.load_state_dict(network.state_dict())
    clip = clips(vit)
    for model in (network, again):
        model(clip).square().sum().backward()
    for one, other in zip(network.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@BOTH
def test_weights_go_from_pretraining_to_finetuning(vit: ViTConfig, tmp_path: Any) -> None:
    network = MaskedAutoencoder(vit, DECODER, [5])
    path = str(tmp_path / "encoder.safetensors")
    save_weights(network.encoder, vit, path)
    classifier = Classifier(vit, PlainHead(), 5)
    assert load_encoder_weights(classifier, path) == 1.0
    torch.testing.assert_close(classifier.encoder.patch_embed.state_dict(),
                               network.encoder.patch_embed.state_dict())  # fmt: skip


def test_layer_decay_knows_the_class_token() -> None:
    assert layer_index("encoder.class_token", 3) == 0
    assert layer_index("encoder.blocks.1.attn.qkv.weight", 3) == 2


def test_tokens_cannot_be_left_out() -> None:
    with pytest.raises(ValueError, match="needs the full grid"):
        DividedEncoder(DIVIDED)(clips(DIVIDED), ~some_mask(DIVIDED))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": "mvit_v2_s"}, "attention: pooling, which is to be written out"),
        ({**MVIT_S, "stages": (1, 2)}, "the 3 blocks of stages"),
        ({**MVIT_S, "image_size": 240}, "divide image_size"),
        ({**MVIT_S, "patch_size": 14}, "patch_size is a multiple of 4"),
        ({**MVIT_S, "tubelet_size": 4}, "tubelet_size is 2"),
        ({**MVIT_S, "num_heads": 4}, "multiples of 8"),
        ({"attention": "dividing"}, "'joint', 'divided' or 'pooling'"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ViTConfig(**settings)


def test_a_decoder_has_no_pooling_size() -> None:
    with pytest.raises(ValidationError, match="size mvit_v2_s is none of vit_s"):
        DecoderConfig(size="mvit_v2_s")


def test_joint_attention_is_the_default() -> None:
    assert type(build_encoder(ViTConfig(size="vit_s", image_size=32))) is Encoder
