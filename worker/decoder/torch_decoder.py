"""What transformers' own Qwen3-MoE takes for the steps of device_decoder_benchmark: eager, bf16, PyTorch's attention and,
where that version has it, its grouped products for the experts. Needs PyTorch, transformers and a GPU."""

import statistics
import time

import torch
from transformers import DynamicCache, Qwen3MoeConfig, Qwen3MoeForCausalLM

CONTEXT, VOCAB, DEPTHS = 512, 4096, (2, 4)


def config(layers):
    return Qwen3MoeConfig(
        vocab_size=VOCAB, hidden_size=2048, head_dim=128, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=4, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768, norm_topk_prob=True,
        max_position_embeddings=40960, tie_word_embeddings=False)


def model_of(layers):
    made = Qwen3MoeForCausalLM._from_config(config(layers), attn_implementation="sdpa", dtype=torch.bfloat16)
    try:
        made.set_experts_implementation("grouped_mm")
    except (AttributeError, ValueError) as error:
        print("experts one by one:", error)
    return made.eval()


def time_of(run):
    seconds = []
    for i in range(13):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if i >= 3:
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


@torch.inference_mode()
def measure(layers):
    torch.manual_seed(1)
    with torch.device("cuda"):
        model = model_of(layers)
    times = {}
    tokens = torch.randint(VOCAB, (8, CONTEXT), device="cuda")
    times["prefill 8 x 512"] = time_of(lambda: model(tokens, logits_to_keep=1))
    for count in (1, 8, 32, 128):
        cache = DynamicCache(config=model.config)
        prompts = torch.randint(VOCAB, (count, CONTEXT), device="cuda")
        for first in range(0, count, 128):
            model(prompts[first:first + 128], past_key_values=cache, logits_to_keep=1)
        one = torch.randint(VOCAB, (count, 1), device="cuda")

        def step():
            model(one, past_key_values=cache, logits_to_keep=1).logits.float().cpu()
            cache.crop(CONTEXT)

        times[f"decode {count}"] = time_of(step)
    return times


def main():
    measured = [measure(layers) for layers in DEPTHS]
    print(f"{'step':28} {'2 layers us':>12} {'4 layers us':>12} {'a layer us':>14}")
    for name, shallow in measured[0].items():
        deep = measured[1][name]
        print(f"{name:28} {shallow * 1e6:12.1f} {deep * 1e6:12.1f} {(deep - shallow) * 1e6 / (DEPTHS[1] - DEPTHS[0]):14.1f}")


main()
