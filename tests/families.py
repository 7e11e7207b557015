"""A tiny random model of each checked architecture, with what makes it special strong enough to matter.

Soft-caps lie below most logits, scales are far from 1, windows are shorter than any sequence of the tests, and weights
are large, so that a loss that misses any of it is wrong by far more than the tolerance.
"""

from __future__ import annotations

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

LLAMA = {
    "vocab_size": 258,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
GPT = {"vocab_size": 258, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
NEOX = {name: value for name, value in LLAMA.items() if name not in ("num_key_value_heads", "head_dim")}
T5 = {"vocab_size": 258, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4,
      "relative_attention_num_buckets": 8, "relative_attention_max_distance": 32, "decoder_start_token_id": 0,
      "initializer_factor": 2.0}  # fmt: skip
BART = {"vocab_size": 258, "d_model": 32, "max_position_embeddings": 256, "forced_eos_token_id": None,
        "decoder_start_token_id": 6, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, "init_std": 0.4}  # fmt: skip
WIDE = {"hidden_size": 64, "head_dim": 16, "num_key_value_heads": 4}  # 4-bit weights come in blocks of 64
WINDOW = {"sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
DEEPSEEK = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "kv_lora_rank": 8,
            "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_shared_experts": 1,
            "moe_intermediate_size": 32, "first_k_dense_replace": 1, "head_dim": 8,
            "num_key_value_heads": 4}  # fmt: skip
LONG = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 24,
        "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "factor": 8.0}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict]] = {
    "llama": ("llama", LLAMA),
    "qwen2": ("qwen2", LLAMA),
    "qwen2-window": ("qwen2", LLAMA | WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("qwen3", LLAMA),
    "gemma": ("gemma", LLAMA),
    "gemma2": ("gemma2", LLAMA | WINDOW | {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 1.0,
                                           "query_pre_attn_scalar": 8}),
    "gemma3": ("gemma3_text", LLAMA | WINDOW | {"query_pre_attn_scalar": 8,
                                                "layer_types": ["sliding_attention", "full_attention"]}),
    "mistral": ("mistral", LLAMA | WINDOW),
    "mixtral": ("mixtral", LLAMA | WINDOW | {"num_local_experts": 4}),
    "qwen2-moe": ("qwen2_moe", LLAMA | EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3-moe": ("qwen3_moe", LLAMA | EXPERTS),
    "olmoe": ("olmoe", LLAMA | {"num_experts": 4, "num_experts_per_tok": 2}),
    "deepseek-v3": ("deepseek_v3", LLAMA | DEEPSEEK),
    "gpt-oss": ("gpt_oss", LLAMA | WINDOW | {"num_local_experts": 4, "num_experts_per_tok": 2,
                                             "layer_types": ["sliding_attention", "full_attention"]}),
    "phi": ("phi", NEOX),
    "phi3": ("phi3", LLAMA),
    "phi3-longrope": ("phi3", LLAMA | {"rope_parameters": LONG, "original_max_position_embeddings": 24}),
    "granite": ("granite", LLAMA | {"logits_scaling": 0.2, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                                    "attention_multiplier": 0.5}),
    "cohere": ("cohere", LLAMA | {"logit_scale": 5.0}),
    "cohere2": ("cohere2", LLAMA | WINDOW | {"logit_scale": 5.0,
                                             "layer_types": ["sliding_attention", "full_attention"]}),
    "olmo2": ("olmo2", LLAMA),
    "smollm3": ("smollm3", LLAMA | {"no_rope_layers": [1, 0]}),
    "stablelm": ("stablelm", LLAMA),
    "starcoder2": ("starcoder2", LLAMA | WINDOW),
    "gpt2": ("gpt2", GPT),
    "gpt-neo": ("gpt_neo", {"vocab_size": 258, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
                            "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 256}),
    "gpt-neox": ("gpt_neox", NEOX),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}),
    "opt": ("opt", {"vocab_size": 258, "hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64,
                    "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 256,
                    "init_std": 0.4}),
    "bloom": ("bloom", {"vocab_size": 258, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("mpt", {"vocab_size": 258, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}),
    "falcon": ("falcon", {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                          "alibi": False}),
    "falcon-alibi": ("falcon", {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2,
                                "num_attention_heads": 4, "alibi": True}),
    "mamba": ("mamba", {"vocab_size": 258, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "t5": ("t5", T5),
    "bart": ("bart", BART),
}  # fmt: skip


def tiny_family(name: str, dtype: torch.dtype = torch.float32, seed: int = 0, **changes: object) -> PreTrainedModel:
    """A random model of one of the families, with changes of its configuration."""
    kind, values = FAMILIES[name]
    values = values | changes
    large = {} if {"initializer_factor", "init_std"} & values.keys() else {"initializer_range": 0.4}
    ends = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0, "tie_word_embeddings": True}
    config = AutoConfig.for_model(kind, **{**ends, **large, **values})
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=dtype).eval()
    if dtype == torch.float64 and not config.is_encoder_decoder:
        model.set_experts_implementation("eager")  # the others know no doubles
    return model
