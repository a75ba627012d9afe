#!/usr/bin/python3
"""Times the MoE layers of layer_benchmark as users of PyTorch write them; prints what it reads: NAME TOKENS SECONDS.

Softmax, top-k, argsort, two torch._grouped_mm, SwiGLU or ReLU, index_add; random weights and tokens; captured graphs of 8 layers
with weights in turn, as layer_benchmark does.
"""
import time

import torch

# Name, experts, top_k, hidden and intermediate size, whether experts have gates.
MODELS = [
    ("qwen3-30b-a3b", 128, 8, 2048, 768, True),
    ("deepseek-v3-slice", 8, 1, 7168, 2048, True),
    ("olmoe", 64, 8, 2048, 1024, True),
    ("mixtral-8x7b", 8, 2, 4096, 14336, True),
    ("switch-base-128", 128, 1, 768, 3072, False),
]
LAYERS = 8
TOKENS = (1, 8, 32, 128, 1024, 4096, 16384)


def layer(x, router, first, down, top_k, gated):
    probabilities = torch.softmax(torch.nn.functional.linear(x, router).float(), dim=-1)
    weights, ids = torch.topk(probabilities, top_k, dim=-1)
    if gated:
        weights = weights / weights.sum(-1, keepdim=True)
    flat = ids.flatten()
    order = torch.argsort(flat, stable=True)
    counts = torch.zeros(router.shape[0], dtype=torch.int32, device=x.device)
    counts.scatter_add_(0, flat, torch.ones_like(flat, dtype=torch.int32))
    ends = torch.cumsum(counts, 0, dtype=torch.int32)
    tokens = order // top_k
    inner = torch._grouped_mm(x[tokens], first.transpose(-2, -1), offs=ends)
    if gated:
        gate, up = inner.chunk(2, dim=-1)
        inner = torch.nn.functional.silu(gate) * up
    else:
        inner = torch.relu(inner)
    rows = torch._grouped_mm(inner, down.transpose(-2, -1), offs=ends)
    rows = rows * weights.flatten()[order].unsqueeze(-1).to(rows.dtype)
    return torch.zeros_like(x).index_add_(0, tokens, rows)


def timed(run, times):
    """The median, after .3 s of the same: long work makes a GPU clock down to what its power limit allows."""
    begin = time.monotonic()
    while time.monotonic() - begin < 0.3:
        run()
        torch.cuda.synchronize()
    seconds = []
    for i in range(times + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= 3:
            seconds.append(begin.elapsed_time(end) / 1e3)
    return sorted(seconds)[len(seconds) // 2]


def print_matmul(device):
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    print("matmul", 0, 2 * 8192**3 / timed(lambda: a @ b, 20), flush=True)


def main():
    device = torch.device("cuda")
    print_matmul(device)
    for name, experts, top_k, hidden, intermediate, gated in MODELS:
        matrices = 3 if gated else 2
        copies = int(2 * 2**30 / (2 * matrices * experts * hidden * intermediate)) + 1
        shape = (copies, experts, (matrices - 1) * intermediate, hidden)
        first = torch.empty(shape, device=device, dtype=torch.bfloat16).uniform_(-0.02, 0.02)
        down = torch.empty((copies, experts, hidden, intermediate), device=device, dtype=torch.bfloat16).uniform_(-0.02, 0.02)
        router = torch.empty(experts, hidden, device=device, dtype=torch.bfloat16).uniform_(-0.05, 0.05)
        for tokens in TOKENS:
            x = torch.empty(LAYERS, tokens, hidden, device=device, dtype=torch.bfloat16).uniform_(-1.7, 1.7)
            layer(x[0], router, first[0], down[0], top_k, gated)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for i in range(LAYERS):
                    layer(x[i], router, first[i % copies], down[i % copies], top_k, gated)
            print(name, tokens, timed(graph.replay, 15) / LAYERS, flush=True)
            del graph
        del first, down
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
