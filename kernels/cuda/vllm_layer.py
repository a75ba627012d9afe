#!/usr/bin/python3
"""Times MoE layers by vLLM's Triton kernel, as torch_layer.py does by PyTorch: prints NAME TOKENS SECONDS.

    vllm_layer.py FOLDER

FOLDER is vllm/model_executor/layers/fused_moe of a vLLM release, brought for the run: its `fused_moe_kernel`, launched as its
invoke_fused_moe_kernel does, with its tuned configuration for this device (configs/), the one that vLLM would choose, or
where it has none for the shape, the best of its tuned configurations for other shapes of so many tokens and of its default.
What vLLM does in CUDA beside the two GEMMs (top-k, sorting by expert into blocks, SwiGLU, the sum over choices) are Triton
kernels here, one for each of its kernels. Every layer is first compared with float32.
"""
import glob
import json
import re
import sys

import torch
import triton
import triton.language as tl

from torch_layer import LAYERS, MODELS, TOKENS, print_matmul, timed


def load_kernel(folder):
    """The kernel alone, without the package around it. Triton reads its source from a file."""
    source = open(folder + "/fused_moe.py").read()
    kernels = [re.search(r"@triton\.jit\ndef %s\(.*?\n(?=\n\n[@\w])" % name, source, re.S).group(0)
               for name in ("write_zeros_to_output", "fused_moe_kernel")]
    path = "/tmp/vllm_fused_moe_kernel.py"
    with open(path, "w") as out:
        out.write("import triton\nimport triton.language as tl\n\n" + "\n\n".join(kernels))
    sys.path.insert(0, "/tmp")
    import vllm_fused_moe_kernel
    return vllm_fused_moe_kernel.fused_moe_kernel


def configurations(folder, experts, intermediate, tokens):
    """Those to try: the tuned one, or else the nearest of every shape tuned on this device, and the default."""
    device = torch.cuda.get_device_name().replace(" ", "_")

    def nearest(path):
        table = {int(m): c for m, c in json.load(open(path)).items() if m.isdigit()}
        return table[min(table, key=lambda m: abs(m - tokens))]

    own = glob.glob(glob.escape("%s/configs/E=%d,N=%d,device_name=%s" % (folder, experts, intermediate, device)) + ".json")
    if own:
        return [nearest(own[0])]
    # As vLLM's get_default_config has it.
    default = (dict(BLOCK_SIZE_M=16, BLOCK_SIZE_N=32, BLOCK_SIZE_K=64, GROUP_SIZE_M=1) if tokens <= experts else
               dict(BLOCK_SIZE_M=64, BLOCK_SIZE_N=64, BLOCK_SIZE_K=32, GROUP_SIZE_M=8))
    unique = {}
    for path in sorted(glob.glob(glob.escape(folder) + "/configs/*device_name=" + device + ".json")):
        # The neighbours: as many experts, or an intermediate size within a factor of two.
        e, n = (int(v) for v in re.search(r"E=(\d+),N=(\d+)", path).groups())
        if e == experts or max(n, intermediate) <= 2 * min(n, intermediate):
            config = nearest(path)
            unique[json.dumps(config, sort_keys=True)] = config
    return [default] + list(unique.values())[:2]


@triton.jit
def top_k_kernel(logits, weights, ids, counts, sorted_ids, slots, pairs, EXPERTS: tl.constexpr, PADDED: tl.constexpr,
                 TOP_K: tl.constexpr, NORM: tl.constexpr):
    """A token's choices; and what sorting needs cleared, slots that pad a block being no pairs."""
    token = tl.program_id(0)
    lanes = tl.arange(0, PADDED)
    if token == 0:
        tl.store(counts + lanes, 0, mask=lanes < EXPERTS)
    for at in range(token * PADDED, slots, tl.num_programs(0) * PADDED):
        tl.store(sorted_ids + at + lanes, pairs, mask=at + lanes < slots)
    x = tl.load(logits + token * EXPERTS + lanes, mask=lanes < EXPERTS, other=-float("inf")).to(tl.float32)
    p = tl.exp(x - tl.max(x, 0))
    p = p / tl.sum(p, 0)
    total = 1.0
    if NORM:
        left = p
        total = 0.0
        for i in tl.static_range(TOP_K):
            total += tl.max(left, 0)
            left = tl.where(lanes == tl.argmax(left, 0), -1.0, left)
    for i in tl.static_range(TOP_K):
        best = tl.argmax(p, 0)
        tl.store(weights + token * TOP_K + i, tl.max(p, 0) / total)
        tl.store(ids + token * TOP_K + i, best.to(tl.int32))
        p = tl.where(lanes == best, -1.0, p)


@triton.jit
def count_kernel(ids, counts, ranks, pairs, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pairs
    expert = tl.load(ids + at, mask=inside, other=0)
    tl.store(ranks + at, tl.atomic_add(counts + expert, 1, mask=inside), mask=inside)


@triton.jit
def place_kernel(ids, ranks, counts, sorted_ids, expert_ids, padded, pairs, most_blocks, EXPERTS: tl.constexpr,
                 PADDED: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK: tl.constexpr):
    lanes = tl.arange(0, PADDED)
    blocks = (tl.load(counts + lanes, mask=lanes < EXPERTS, other=0) + BLOCK_M - 1) // BLOCK_M
    ends = tl.cumsum(blocks, 0)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < pairs
    expert = tl.load(ids + at, mask=inside, other=0)
    begin = tl.sum(tl.where(lanes[None, :] < expert[:, None], blocks[None, :], 0), 1) * BLOCK_M
    tl.store(sorted_ids + begin + tl.load(ranks + at, mask=inside, other=0), at, mask=inside)
    of_block = tl.sum((ends[None, :] <= at[:, None]).to(tl.int32), 1)
    tl.store(expert_ids + at, tl.minimum(of_block, EXPERTS - 1), mask=at < most_blocks)
    if tl.program_id(0) == 0:
        tl.store(padded, tl.sum(blocks, 0) * BLOCK_M)


@triton.jit
def activate_kernel(inner, out, N: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    width: tl.constexpr = 2 * N if GATED else N
    first = tl.load(inner + row * width + at, mask=at < N).to(tl.float32)
    if GATED:
        up = tl.load(inner + row * width + N + at, mask=at < N).to(tl.float32)
        v = first / (1 + tl.exp(-first)) * up
    else:
        v = tl.maximum(first, 0.0)
    tl.store(out + row * N + at, v.to(tl.bfloat16), mask=at < N)


@triton.jit
def sum_kernel(rows, out, H: tl.constexpr, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range(TOP_K):
        total += tl.load(rows + (token * TOP_K + i) * H + at, mask=at < H, other=0).to(tl.float32)
    tl.store(out + token * H + at, total.to(tl.bfloat16), mask=at < H)


class Layer:
    """The buffers of a layer of one shape, and what runs it."""

    def __init__(self, kernel, model, tokens, config):
        _, self.experts, self.top_k, self.hidden, self.n, self.gated = model
        self.kernel, self.tokens, self.config = kernel, tokens, dict(config)
        pairs, self.block = tokens * self.top_k, config["BLOCK_SIZE_M"]

        def ints(size):
            return torch.empty(size, dtype=torch.int32, device="cuda")

        self.most = pairs + self.experts * (self.block - 1)
        self.ids, self.ranks, self.padded = ints(pairs), ints(pairs), ints(1)
        self.expert_ids = ints(triton.cdiv(self.most, self.block))
        self.counts, self.sorted_ids = ints(self.experts), ints(self.most)
        self.weights = torch.empty(pairs, dtype=torch.float32, device="cuda")
        width = self.n * (2 if self.gated else 1)
        self.inner = torch.empty(pairs, width, dtype=torch.bfloat16, device="cuda")
        self.activated = torch.empty(pairs, self.n, dtype=torch.bfloat16, device="cuda")
        self.rows = torch.empty(pairs, self.hidden, dtype=torch.bfloat16, device="cuda")
        self.out = torch.empty(tokens, self.hidden, dtype=torch.bfloat16, device="cuda")

    def product(self, a, b, c, top_k, weigh):
        config = dict(self.config)
        slots = self.most
        if a.shape[0] < self.block:
            slots = min(slots, a.shape[0] * top_k * self.block)
        grid = (triton.cdiv(slots, self.block) * triton.cdiv(b.shape[1], config["BLOCK_SIZE_N"]),)
        self.kernel[grid](a, b, c, None, None, None, self.weights, self.sorted_ids, self.expert_ids, self.padded,
                          b.shape[1], b.shape[2], slots, a.shape[0] * top_k, a.stride(0), a.stride(1), b.stride(0),
                          b.stride(2), b.stride(1), c.stride(0), c.stride(1), 0, 0, 0, 0, 0, 0, 0, 0, 0,
                          MUL_ROUTED_WEIGHT=weigh, top_k=top_k, compute_type=tl.bfloat16, use_fp8_w8a8=False,
                          use_int8_w8a8=False, use_int8_w8a16=False, per_channel_quant=False, HAS_BIAS=False, **config)

    def run(self, x, router, first, down):
        pairs = self.tokens * self.top_k
        padded = triton.next_power_of_2(self.experts)
        logits = torch.nn.functional.linear(x, router)
        top_k_kernel[(self.tokens,)](logits, self.weights, self.ids, self.counts, self.sorted_ids, self.most, pairs,
                                     self.experts, padded, self.top_k, self.gated, num_warps=1)
        count_kernel[(triton.cdiv(pairs, 256),)](self.ids, self.counts, self.ranks, pairs, 256)
        blocks = self.expert_ids.numel()
        place_kernel[(triton.cdiv(max(pairs, blocks), 64),)](self.ids, self.ranks, self.counts, self.sorted_ids, self.expert_ids,
                                                             self.padded, pairs, blocks, self.experts, padded, self.block, 64)
        self.product(x, first, self.inner, self.top_k, False)
        activate_kernel[(pairs, triton.cdiv(self.n, 1024))](self.inner, self.activated, self.n, self.gated, 1024)
        self.product(self.activated, down, self.rows, 1, True)
        sum_kernel[(self.tokens, triton.cdiv(self.hidden, 1024))](self.rows, self.out, self.hidden, self.top_k, 1024)
        return self.out


def expected(x, router, first, down, top_k, gated):
    """Some tokens of the layer in float32."""
    p = torch.softmax(torch.nn.functional.linear(x, router).float(), dim=-1)
    weights, ids = torch.topk(p, top_k, dim=-1)
    if gated:
        weights = weights / weights.sum(-1, keepdim=True)
    rows = []
    for t in range(x.shape[0]):
        total = 0
        for j in range(top_k):
            inner = first[ids[t, j]].float() @ x[t].float()
            gate, up = inner.chunk(2) if gated else (inner, None)
            inner = torch.nn.functional.silu(gate) * up if gated else torch.relu(inner)
            total = total + weights[t, j] * (down[ids[t, j]].float() @ inner)
        rows.append(total)
    return torch.stack(rows)


def main():
    folder = sys.argv[1]
    chosen_models = sys.argv[2:]
    kernel = load_kernel(folder)
    device = torch.device("cuda")
    print_matmul(device)
    for model in MODELS:
        name, experts, top_k, hidden, intermediate, gated = model
        if chosen_models and name not in chosen_models:
            continue
        matrices = 3 if gated else 2
        copies = int(2 * 2**30 / (2 * matrices * experts * hidden * intermediate)) + 1
        first = torch.empty(copies, experts, (matrices - 1) * intermediate, hidden, device=device,
                            dtype=torch.bfloat16).uniform_(-0.02, 0.02)
        down = torch.empty(copies, experts, hidden, intermediate, device=device, dtype=torch.bfloat16).uniform_(-0.02, 0.02)
        router = torch.empty(experts, hidden, device=device, dtype=torch.bfloat16).uniform_(-0.05, 0.05)
        for tokens in TOKENS:
            x = torch.empty(LAYERS, tokens, hidden, device=device, dtype=torch.bfloat16).uniform_(-1.7, 1.7)
            best = None
            for config in configurations(folder, experts, intermediate, tokens):
                try:
                    layer = Layer(kernel, model, tokens, config)
                    out = layer.run(x[0], router, first[0], down[0])
                except triton.runtime.errors.OutOfResources:
                    continue
                some = min(tokens, 8)
                wanted = expected(x[0, :some], router, first[0], down[0], top_k, gated)
                error = ((out[:some].float() - wanted).norm() / wanted.norm()).item()
                if not error < 1e-2:
                    raise RuntimeError("%s, %d tokens, %s: error %g" % (name, tokens, config, error))
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    for i in range(LAYERS):
                        layer.run(x[i], router, first[i % copies], down[i % copies])
                seconds = timed(graph.replay, 5) / LAYERS
                if best is None or seconds < best:
                    best = seconds
                del graph, layer
            print("vllm:" + name, tokens, best, flush=True)
        del first, down
        torch.cuda.empty_cache()


main()
