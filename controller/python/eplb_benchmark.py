#!/usr/bin/python3
"""The planner, through the Python package, beside EPLB as published: in NumPy (vLLM's) and in PyTorch (SGLang's copy of
DeepSeek's; another copy with --eplb FILE).

One process, one thread, the planners in turn, medians over the rounds, of processor time, so that other work on the
machine counts little. What takes more than two seconds is run once, and PyTorch not at all on 1,024 GPUs, where it takes
minutes. Loads are DeepSeek-R1's where they are at hand (BALLAST_SHARED), else drawn from Zipf's law.
Takes --benchmark_out=FILE as Google Benchmark does.
"""
import argparse
import importlib
import importlib.util
import json
import os
import statistics
import sys
import time
import types
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import numpy as np
import torch

from ballast_planner import rebalance_experts, rebalance_experts_with_shares

torch.set_num_threads(1)

# layers, experts, physical experts, GPUs
SHAPES = [(58, 256, 288, 32), (58, 256, 320, 64), (58, 256, 640, 320), (61, 512, 2048, 1024)]
MANY_GPUS = 1000
LONG_MS = 2000
NUMPY, PYTORCH = "eplb, NumPy (vLLM)", "eplb, PyTorch (SGLang)"
REAL = "data/deepseek_r1_counts/prefill_in4096.json"


def vllm_policy(peers):
    """vLLM's policy class, without vLLM."""
    package = types.ModuleType("vllm_policy")
    package.__path__ = [str(peers / "vllm/vllm/distributed/eplb/policy")]
    sys.modules[package.__name__] = package
    return importlib.import_module("vllm_policy.default").DefaultEplbPolicy


def torch_eplb(path):
    """The module of DeepSeek's EPLB or of SGLang's copy, which imports a helper that it does not use."""
    for name in ("sglang", "sglang.srt", "sglang.srt.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["sglang.srt.utils"].get_bool_env_var = None
    spec = importlib.util.spec_from_file_location("published_eplb", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def load_of(layers, experts):
    """(name, [layers][experts])"""
    real = Path(os.environ.get("BALLAST_SHARED", ""), REAL)
    if real.is_file():
        counts = np.array(json.loads(real.read_text())["logical_count"], dtype=np.float64)
        counts = counts[counts.sum(-1) > 0]
        if counts.shape == (layers, experts):
            return Path(REAL).stem, counts
    random = np.random.default_rng(1)
    counts = 1e6 / np.arange(1, experts + 1) ** 0.8
    return "zipf", np.floor(np.stack([random.permutation(counts) for _ in range(layers)]))


def balancedness(weight, phy2log, gpus, shares=None):
    phy2log = np.asarray(phy2log)
    if shares is None:
        counts = np.stack([np.bincount(row, minlength=weight.shape[1]) for row in phy2log])
        shares = 1 / np.take_along_axis(counts, phy2log, axis=1)
    load = (np.take_along_axis(weight, phy2log, axis=1) * np.asarray(shares)).reshape(len(weight), gpus, -1).sum(-1)
    return float((load.mean(1) / load.max(1)).mean())


def planners(weight, replicas, gpus, numpy_policy, torch_module, extra):
    tensor = torch.from_numpy(weight)

    def published(module):
        if module.__name__ == "published_eplb" and "enable_hierarchical" in module.rebalance_experts.__annotations__:
            return module.rebalance_experts(tensor, replicas, 1, 1, gpus, enable_hierarchical=True)[0], None
        return module.rebalance_experts(tensor, replicas, 1, 1, gpus)[0], None

    def with_shares():
        plan = rebalance_experts_with_shares(weight, replicas, 1, 1, gpus)
        return plan.phy2log, plan.shares

    found = {NUMPY: lambda: (numpy_policy.rebalance_experts(tensor, replicas, 1, 1, gpus), None)}
    if gpus < MANY_GPUS:
        found[PYTORCH] = lambda: published(torch_module)
        if extra is not None:
            found["eplb, PyTorch (--eplb)"] = lambda: published(extra)
    found["ours, eplb"] = lambda: (rebalance_experts(weight, replicas, 1, 1, gpus, policy="eplb")[0], None)
    found["ours, level with shares"] = with_shares
    found["ours, searched for equal split"] = lambda: (rebalance_experts(weight, replicas, 1, 1, gpus)[0], None)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--eplb", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--benchmark_out", type=Path)
    parser.add_argument("--benchmark_out_format", choices=["json"], default="json")
    options = parser.parse_args()
    if not (options.peers / "vllm").is_dir():
        sys.exit("the published planners are missing: run .ci/setup.sh")
    numpy_policy = vllm_policy(options.peers)
    torch_module = torch_eplb(options.peers / "sglang/sglang/srt/eplb/eplb_algorithms/deepseek.py")
    extra = torch_eplb(options.eplb) if options.eplb else None

    results = []
    for layers, experts, replicas, gpus in SHAPES:
        load, weight = load_of(layers, experts)
        print(f"{layers} layers x {experts} experts, {replicas} slots on {gpus} GPUs, {load}")
        found = planners(weight, replicas, gpus, numpy_policy, torch_module, extra)
        plans, times = {}, {name: [] for name in found}
        for _ in range(options.rounds):
            for name, plan in found.items():
                if times[name] and max(times[name]) > LONG_MS:
                    continue
                start = time.process_time()
                plans[name] = plan()
                times[name].append((time.process_time() - start) * 1e3)
        median = {name: statistics.median(ms) for name, ms in times.items()}
        for name, ms in median.items():
            level = balancedness(weight, plans[name][0], gpus, plans[name][1])
            row = {
                "name": f"{name}/{layers}x{experts}/{replicas}/{gpus}/{load}",
                "cpu_time": ms,
                "time_unit": "ms",
                "iterations": len(times[name]),
                "balancedness": level,
                "times_faster_than_numpy": median[NUMPY] / ms,
            }
            text = f"  {name:32} {ms:9.1f} ms  balancedness {level:.4f}  faster than NumPy x {median[NUMPY] / ms:.1f}"
            if PYTORCH in median:
                row["times_faster_than_torch"] = median[PYTORCH] / ms
                text += f", than PyTorch x {median[PYTORCH] / ms:.1f}"
            print(text, flush=True)
            results.append(row)
    if options.benchmark_out:
        context = {"executable": "eplb_benchmark", "numpy": np.__version__, "torch": torch.__version__}
        options.benchmark_out.write_text(json.dumps({"context": context, "benchmarks": results}, indent=1) + "\n")


main()
