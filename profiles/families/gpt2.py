"""GPT-2, GPT-3: LayerNorm, learned positions, biases, GELU, tied head. Radford et al. 2019; arXiv 2005.14165."""

from __future__ import annotations

from profiles.families.config import Config, choice, flag, head_width, number, refuse, whole_number
from profiles.model import FeedForward, LayerSpec, ModelSpec, SelfAttention


def gpt2_spec(
    *, name: str, num_layers: int, hidden: int, num_heads: int, num_kv_heads: int, head_dim: int, ffn_hidden: int,
    vocab: int, max_seq_len: int, tied_embeddings: bool = True, qkv_bias: bool = True, norm_eps: float = 1e-5,
    rope_theta: float = 10000.0, source: str = "",
) -> ModelSpec:
    """Return a model of GPT-2's blocks by its dimensions; its position table has `max_seq_len` rows."""
    layer = LayerSpec(
        mixer=SelfAttention(
            num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, positions="learned", qkv_bias=qkv_bias,
            out_bias=True,
        ),
        ffn=FeedForward(hidden=ffn_hidden, activation="gelu", bias=True),
    )
    return ModelSpec(
        name=name, family="gpt2", hidden=hidden, vocab=vocab, max_seq_len=max_seq_len, kinds=(layer,),
        pattern=(0,) * num_layers, norm="layer_norm", norm_bias=True, norm_eps=norm_eps, rope_theta=rope_theta,
        learned_positions=max_seq_len, tied_embeddings=tied_embeddings, source=source,
    )


def from_config(config: Config) -> ModelSpec:
    """Return the spec of a `GPT2Config`."""
    refuse(config, ("add_cross_attention",))
    choice(config, "activation_function", dict.fromkeys(("gelu", "gelu_new", "gelu_pytorch_tanh"), "gelu"), "gelu_new")
    heads, hidden = whole_number(config, "n_head"), whole_number(config, "n_embd")
    return gpt2_spec(
        name="", num_layers=whole_number(config, "n_layer"), hidden=hidden, num_heads=heads, num_kv_heads=heads,
        head_dim=head_width(hidden, heads, "n_head"), ffn_hidden=whole_number(config, "n_inner", 4 * hidden),
        vocab=whole_number(config, "vocab_size"), max_seq_len=whole_number(config, "n_positions"),
        tied_embeddings=flag(config, "tie_word_embeddings", True),
        norm_eps=number(config, "layer_norm_epsilon", 1e-5),
    )
