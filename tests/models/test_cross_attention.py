"""MCA against a per-sample NumPy reading of MOFO's Eq. 4-6, its edge cases and its gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from kinema.models.cross_attention import MCA, mean_tokens

DIM, TOKENS = 6, 9


def mca(block: str = "residual", head_dim: str = "model", heads: int = 3, depth: int = 1) -> MCA:
    torch.manual_seed(0)
    module = MCA(DIM, heads, depth, head_dim, block, 4.0).double().eval()  # type: ignore[arg-type]
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    return module


def tokens_and_boxes() -> tuple[torch.Tensor, torch.Tensor]:
    """Six clips: four of mixed sizes, one without inner tokens, one without outer ones."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(6, TOKENS, DIM, generator=generator, dtype=torch.float64)
    inner = torch.zeros(6, TOKENS, dtype=torch.bool)
    inner[0, 2:5] = inner[1, 0] = inner[2, 1:] = inner[3, ::2] = inner[5] = True
    return tokens, inner


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def layer_norm(x: np.ndarray, norm: nn.LayerNorm) -> np.ndarray:
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return x * array(norm.weight) + array(norm.bias)


def affine(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    y = x @ array(layer.weight).T
    return y if layer.bias is None else y + array(layer.bias)


def eq_4_to_6(attn: nn.Module, queries: np.ndarray, context: np.ndarray) -> np.ndarray:
    """Heads one by one, each with its own slices of the weight matrices."""
    width = attn.head_dim
    q, k, v = affine(queries, attn.q), affine(context, attn.k), affine(context, attn.v)
    heads = []
    for h in range(attn.num_heads):
        part = slice(h * width, (h + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        heads.append(weights / weights.sum(1, keepdims=True) @ v[:, part])
    return affine(np.concatenate(heads, axis=1), attn.proj)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def reference(module: MCA, tokens: np.ndarray, inner: np.ndarray) -> np.ndarray:
    """One clip of (N, D) tokens, really split into its two sets."""
    x, outer = tokens[inner], tokens[~inner]
    if len(x) == 0:
        return tokens.mean(axis=0)
    for block in module.blocks:
        context = x if len(outer) == 0 else outer
        if hasattr(block, "mlp"):
            x = x + eq_4_to_6(
                block.attn, layer_norm(x, block.norm1), layer_norm(context, block.norm1)
            )
            hidden = gelu(affine(layer_norm(x, block.norm2), block.mlp.fc1))
            x = x + affine(hidden, block.mlp.fc2)
        else:
            x = eq_4_to_6(block.attn, x, context)
    return x.mean(axis=0)


@pytest.mark.parametrize(
    ("block", "depth"), [("bare", 1), ("residual", 1), ("residual", 2), ("residual", 3)]
)
@pytest.mark.parametrize("head_dim", ["model", "split"])
@pytest.mark.parametrize("heads", [1, 3])
def test_agrees_with_the_per_sample_reference(block, depth, head_dim, heads) -> None:
    module = mca(block, head_dim, heads, depth)
    tokens, inner = tokens_and_boxes()
    got = array(module(tokens, inner))
    for i in range(len(tokens)):
        expected = reference(module, tokens[i].numpy(), inner[i].numpy())
        np.testing.assert_allclose(got[i], expected, atol=1e-10, err_msg=f"clip {i}")


def test_no_inner_token_gives_the_plain_mean() -> None:
    tokens, inner = tokens_and_boxes()
    assert torch.allclose(mca()(tokens, inner)[4], tokens[4].mean(0))


@pytest.mark.parametrize("block", ["residual", "bare"])
def test_a_clips_result_does_not_depend_on_its_batch_mates(block) -> None:
    module = mca(block).float()
    tokens, inner = tokens_and_boxes()
    tokens = tokens.float()
    together = module(tokens, inner)
    for i in range(len(tokens)):
        alone = module(tokens[i : i + 1], inner[i : i + 1])[0]
        assert torch.allclose(alone, together[i], atol=1e-6)
    other_tokens, other_inner = tokens * 50, ~inner
    other_tokens[0], other_inner[0] = tokens[0], inner[0]
    assert torch.allclose(module(other_tokens, other_inner)[0], together[0], atol=1e-6)


def test_inner_tokens_are_no_keys_and_outer_tokens_no_queries() -> None:
    module = mca("bare")
    tokens, inner = tokens_and_boxes()
    tokens.requires_grad_()
    module(tokens, inner)[0].sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[0].abs().sum(-1).gt(0).all()  # inner as queries, outer as context
    # With one outer token the softmax is 1, so the result is that token's value for any query.
    single = torch.ones(1, TOKENS, dtype=torch.bool)
    single[0, 4] = False
    clip = tokens.detach()[:1].clone()
    before = module(clip, single)
    clip[:, :4] = 7.0
    assert torch.allclose(module(clip, single), before)
    clip[:, 4] = 7.0
    assert not torch.allclose(module(clip, single), before)


@pytest.mark.parametrize(
    ("block", "depth", "head_dim"),
    [("bare", 1, "model"), ("residual", 2, "model"), ("residual", 1, "split")],
)
def test_gradients_agree_with_finite_differences(block, depth, head_dim) -> None:
    module = mca(block, head_dim, depth=depth)
    tokens, inner = tokens_and_boxes()
    tokens = tokens[3::2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: module(x, inner[3::2, :3]), (tokens,))


def test_bare_attention_has_the_four_matrices_of_eq_5_and_6_alone() -> None:
    module = mca("bare")
    assert {name: tuple(p.shape) for name, p in module.named_parameters()} == {
        "blocks.0.attn.q.weight": (18, 6),
        "blocks.0.attn.k.weight": (18, 6),
        "blocks.0.attn.v.weight": (18, 6),
        "blocks.0.attn.proj.weight": (6, 18),
    }


def test_split_heads_share_the_width_and_keys_have_no_bias() -> None:
    attention = mca("residual", "split").blocks[0].attn
    assert attention.q.weight.shape == (6, 6)
    assert attention.k.bias is None
    assert attention.q.bias is not None
    assert attention.v.bias is not None


def test_mean_of_kept_tokens() -> None:
    tokens = torch.tensor([[[1.0], [3.0], [8.0]], [[1.0], [3.0], [8.0]]])
    keep = torch.tensor([[True, False, True], [False, False, False]])
    assert mean_tokens(tokens, keep).flatten().tolist() == [4.5, 0.0]
