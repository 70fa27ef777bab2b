"""What the transformers share, against torch's own."""

import pytest
import torch
from torch import nn

from deeplense.models.transformer import (
    Block,
    SelfAttention,
    SoftmaxAttention,
    drop_path_rates,
    merge_heads,
    split_heads,
    to_map,
    to_tokens,
)
from tests.models.backbone_laws import noise


@pytest.mark.parametrize("fused", [True, False])
def test_attention_is_that_of_torch(fused: bool) -> None:
    torch.manual_seed(0)
    oracle = nn.MultiheadAttention(12, 3, bias=False, batch_first=True)
    queries, keys, bias = noise(2, 5, 12), noise(2, 7, 12) + 1, noise(5, 7)
    wanted, _ = oracle(queries, keys, keys, attn_mask=bias)
    to_queries, to_keys, to_values = oracle.in_proj_weight.chunk(3)
    projected = (queries @ to_queries.T, keys @ to_keys.T, keys @ to_values.T)
    attend = SoftmaxAttention()
    attend.fused_attn = fused
    mixed = attend(*(split_heads(tokens, 3) for tokens in projected), bias=bias)
    torch.testing.assert_close(oracle.out_proj(merge_heads(mixed)), wanted)


def test_self_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    attention, oracle = SelfAttention(12, 3), nn.MultiheadAttention(12, 3, batch_first=True)
    oracle.out_proj.load_state_dict(attention.project.state_dict())
    with torch.no_grad():
        oracle.in_proj_weight.copy_(attention.queries_keys_values.weight)
        oracle.in_proj_bias.copy_(attention.queries_keys_values.bias)
    tokens, bias = noise(2, 5, 12), noise(5, 5)
    wanted, _ = oracle(tokens, tokens, tokens, attn_mask=bias)
    torch.testing.assert_close(attention(tokens, bias=bias), wanted)


def test_tokens_make_a_map_row_by_row() -> None:
    maps = noise(2, 3, 4, 4)
    assert torch.equal(to_tokens(maps)[:, 6], maps[:, :, 1, 2])
    assert torch.equal(to_map(to_tokens(maps)), maps)


def test_a_block_adds_to_its_tokens_what_attention_and_mlp_say() -> None:
    block = Block(4, nn.Identity(), mlp_ratio=2, drop_path=0.0)
    tokens = noise(2, 3, 4)
    for parameter in block.mlp.fc2.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(block(tokens), tokens + nn.functional.layer_norm(tokens, (4,), eps=1e-6))


def test_stochastic_depth_grows_from_the_first_block_to_the_last() -> None:
    assert drop_path_rates(0.3, (1, 2, 1)) == [[0.0], pytest.approx([0.1, 0.2]), [pytest.approx(0.3)]]
    assert drop_path_rates(0.0, (1, 1)) == [[0.0], [0.0]]
