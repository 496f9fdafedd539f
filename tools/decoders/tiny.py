"""Tiny configurations of every causal language model that the installed transformers knows."""

from __future__ import annotations

from typing import Any

VOCABULARY = 100

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "ffn_hidden_size": 48,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
    # linear attention and states
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_d_ssm": 32,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_head_dim": 8,
    "mamba_num_heads": 8,
    "ssm_state_size": 8,
    "state_size": 8,
    "time_step_rank": 4,
    "n_groups": 1,
    # parts that a decoder inherits from a larger model
    "encoder_layers": 1,
    "encoder_ffn_dim": 48,
    "encoder_attention_heads": 4,
    "decoder_layers": 2,
    "decoder_ffn_dim": 48,
    "decoder_attention_heads": 4,
    "word_embed_proj_dim": 32,
    "embedding_size": 32,
    "is_decoder": True,
    "add_cross_attention": False,
    # nothing random in training
    **dict.fromkeys(
        (
            "attention_dropout", "dropout", "activation_dropout", "hidden_dropout", "hidden_dropout_prob",
            "attention_probs_dropout_prob", "resid_pdrop", "embd_pdrop", "attn_pdrop", "embedding_dropout", "layerdrop",
            "decoder_layerdrop", "encoder_layerdrop", "ffn_dropout_rate", "emb_pdrop", "residual_dropout",
            "embed_dropout", "attn_dropout", "ffn_dropout", "classifier_dropout", "router_jitter_noise",
            "input_jitter_noise", "mlp_dropout", "embed_pdrop", "summary_first_dropout",
        ),
        0.0,
    ),
}  # fmt: skip
"""Values of keys that a configuration has; others are not set"""

_BLT_PART = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": VOCABULARY,
    "hidden_size_global": 32,
    "cross_attn_k": 1,
}
_BLT = {
    "cross_attn_k": 1,
    "encoder_hash_byte_group_vocab": 16,
    **{f"{part}_config": _BLT_PART for part in ("patcher", "encoder", "decoder", "global")},
}
_TWO_KINDS = {"layer_types": ["linear_attention", "full_attention"]}
_TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_OWN: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {
        **_TWO_KINDS,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "mlp_layer_types": ["dense", "sparse"],
    },
    "bamba": {"attn_layer_indices": [1]},
    "blt": _BLT,
    "camembert": _TOKENS,
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "cwm": _TOKENS,
    "data2vec-text": _TOKENS,
    "dory": {"num_hidden_layers": 6, "n_input_layers": 2, "n_recurrent_layers": 2, "n_output_layers": 2},
    "falcon_h1": {"mamba_d_ssm": 64},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "activation_sparsity_pattern": None,
    },
    "gemma4_text": {"vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8, "global_head_dim": 8},
    "gemma4_assistant": {"hidden_size_per_layer_input": 0},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**_TWO_KINDS, "shared_intermediate_size": 48},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4, "mamba_d_state": 8},
    "kimi_linear": {**_TWO_KINDS, "linear_head_dim": 8, "linear_num_heads": 4, "mlp_layer_types": ["dense", "sparse"]},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "minimax": {"layer_types": ["full_attention", "linear_attention"]},
    "modernbert-decoder": _TOKENS,
    "nemotron_h": {
        "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
        "moe_shared_expert_intermediate_size": 16,
    },
    "phi4_multimodal": {
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 28,
            "crop_size": 28,
            "feature_layer": -1,
        },
        "audio_config": {
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_blocks": 1,
            "num_attention_heads": 2,
            "nemo_conv_channels": 16,
            "ext_pw_out_channel": 16,
            "depthwise_separable_out_channel": 16,
            "feature_layer": -1,
        },
    },
    "qwen3_5_moe_text": _TWO_KINDS,
    "qwen3_5_text": _TWO_KINDS,
    "qwen3_next": _TWO_KINDS,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"],
        "index_head_dim": 8,
        "index_n_heads": 2,
        "hc_lowrank": 4,
        "ple_embed_dim": 8,
        "ngram_vocab_size_base": 64,
        "split_ngram_parts": 2,
        "make_ngram_vocab_size_divisible_by": 4,
    },
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 24},
    "roberta": _TOKENS,
    "roberta-prelayernorm": _TOKENS,
    "xlm-roberta": _TOKENS,
    "xlm-roberta-xl": _TOKENS,
    "xmod": {**_TOKENS, "default_language": "en_XX"},
    "xlnet": {"d_head": 8, "d_inner": 48},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_key_value_heads": 4,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "hybrid_layer_ids": [1],
        "num_key_value_heads": 4,
        "mamba_headdim": 8,
        "mamba_d_state": 8,
        "n_mamba_heads": 8,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""What an architecture needs in addition"""


def architectures() -> list[str]:
    """The model types of all causal language models."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    del MODEL_FOR_CAUSAL_LM_MAPPING
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> dict[str, Any]:
    """A decoder's `config` for train.yaml."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config_class = CONFIG_MAPPING[model_type]
    try:
        default = config_class()
        known = {
            key
            for key in _SIZES
            if hasattr(default, key) and not isinstance(getattr(config_class, key, None), property)
        }
    except Exception:
        known = set(_SIZES)
    mapped = getattr(config_class, "attribute_map", {})
    known -= {mapped[key] for key in known & mapped.keys()}
    sizes = {key: _SIZES[key] for key in _SIZES if key in known}
    if "kv_lora_rank" in known:  # latent attention has as many keys as queries, and rotates a part of each
        sizes |= {"num_key_value_heads": 4, "head_dim": 4}
    return {"model_type": model_type, **sizes, **_OWN.get(model_type, {})}
