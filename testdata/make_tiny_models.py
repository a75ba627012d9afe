#!/usr/bin/env python3
"""Makes the tiny random models below testdata/ and what transformers computes with them.

usage: make_tiny_models.py OUT
Needs torch (CPU is enough), transformers 5 and safetensors from PyPI; the committed files were made with torch 2.15.0 and
transformers 5.23.0. Each model goes to OUT/NAME: config.json, model.safetensors (bf16) and reference.safetensors, which
holds, computed in float32 with the plain expert loop: input_ids [2,24] int32, logits_last8 [2,8,V], and for layer L that
is MoE layer M: layers.M.router.logits [2,24,E], layers.M.mlp.input and .output [2,24,H].

mixtral-tiny    Mixtral's routing and names, grouped-query attention, no q/k norm
qwen3moe-tiny   a dense layer between MoE layers, attention biases, an output projection of its own
olmoe-tiny      clipped queries, keys and values, grouped-query attention
"""
import sys

import torch
from safetensors.torch import save_file
from transformers import (MixtralConfig, MixtralForCausalLM, OlmoeConfig, OlmoeForCausalLM, Qwen3MoeConfig,
                          Qwen3MoeForCausalLM)

COMMON = dict(vocab_size=100, hidden_size=40, num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
              bos_token_id=1, eos_token_id=2, pad_token_id=0, use_cache=False)
MODELS = {
    "mixtral-tiny": (MixtralForCausalLM, MixtralConfig(
        **COMMON, head_dim=16, num_hidden_layers=2, intermediate_size=24, num_local_experts=5, num_experts_per_tok=2,
        sliding_window=None, rms_norm_eps=1e-5, tie_word_embeddings=False)),
    "qwen3moe-tiny": (Qwen3MoeForCausalLM, Qwen3MoeConfig(
        **COMMON, head_dim=16, num_hidden_layers=3, intermediate_size=56, moe_intermediate_size=24, num_experts=6,
        num_experts_per_tok=3, norm_topk_prob=True, mlp_only_layers=[1], decoder_sparse_step=1, attention_bias=True,
        tie_word_embeddings=False)),
    "olmoe-tiny": (OlmoeForCausalLM, OlmoeConfig(
        **(COMMON | {"hidden_size": 64}), num_hidden_layers=2, intermediate_size=24, num_experts=6,
        num_experts_per_tok=3, norm_topk_prob=False, clip_qkv=0.6, tie_word_embeddings=True)),
}

for seed, (name, (cls, config)) in enumerate(MODELS.items()):
    torch.manual_seed(seed)
    out = f"{sys.argv[1]}/{name}"
    model = cls(config)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if "norm" in key:
                p.copy_(1 + 0.3 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.3 if p.dim() == 1 else p.shape[-1] ** -0.5 * 1.5))
    model.to(torch.bfloat16).save_pretrained(out)

    ref_model = cls.from_pretrained(out, dtype=torch.float32).eval()
    ref_model.set_experts_implementation("eager")
    ids = torch.randint(3, config.vocab_size, (2, 24))
    ref = {"input_ids": ids.int()}
    moe_layers = [l for l in ref_model.model.layers if hasattr(l.mlp, "experts")]
    for m, layer in enumerate(moe_layers):
        def keep(module, args, result, m=m):
            result = result[0] if isinstance(result, tuple) else result
            ref[f"layers.{m}.mlp.input"] = args[0].reshape(2, 24, -1).contiguous()
            ref[f"layers.{m}.mlp.output"] = result.reshape(2, 24, -1).contiguous()
        layer.mlp.register_forward_hook(keep)
    with torch.no_grad():
        result = ref_model(input_ids=ids, output_router_logits=True)
    ref["logits_last8"] = result.logits[:, -8:].contiguous()
    for m, logits in enumerate(r for r in result.router_logits if r is not None):
        ref[f"layers.{m}.router.logits"] = logits.reshape(2, 24, -1).contiguous()
    save_file(ref, f"{out}/reference.safetensors")
    print(name, sum(p.numel() for p in model.parameters()), "parameters")
