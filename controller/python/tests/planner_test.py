"""The installed package, beside the published algorithm that it stands in for."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import ballast_planner
from ballast_planner import (
    PlannerError,
    keep_slots,
    rebalance_experts,
    rebalance_experts_with_shares,
    solve_shares,
)

PUBLISHED = Path("external/system/peers/sglang/sglang/srt/eplb/eplb_algorithms/deepseek.py")

WEIGHT = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
PHY2LOG = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


@pytest.fixture(scope="module")
def published():
    assert PUBLISHED.exists(), "the published algorithm is missing: run .ci/setup.sh"
    # It imports a helper that it does not use.
    for name in ("sglang", "sglang.srt", "sglang.srt.utils"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["sglang.srt.utils"].get_bool_env_var = None
    spec = importlib.util.spec_from_file_location("published", PUBLISHED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lognormal(seed, layers, experts, skew=1.2):
    return np.floor(np.random.default_rng(seed).lognormal(9, skew, (layers, experts)))


def level(weight, phy2log, gpus, shares):
    """Mean over max GPU load, averaged over layers."""
    load = (np.take_along_axis(weight, phy2log, axis=1) * shares).reshape(len(weight), gpus, -1).sum(-1)
    return (load.mean(1) / load.max(1)).mean()


def equal_shares(phy2log, logcnt):
    return 1 / np.take_along_axis(logcnt, phy2log, axis=1)


def expect_sound(weight, plan, replicas):
    phy2log, log2phy, logcnt = plan
    layers, experts = weight.shape
    assert phy2log.shape == (layers, replicas)
    assert logcnt.shape == (layers, experts)
    assert log2phy.shape == (layers, experts, logcnt.max())
    assert phy2log.min() >= 0 and phy2log.max() < experts
    assert logcnt.min() >= 1
    assert (logcnt.sum(1) == replicas).all()
    for layer in range(layers):
        for expert in range(experts):
            slots = log2phy[layer, expert]
            count = logcnt[layer, expert]
            assert (slots[count:] == -1).all()
            assert sorted(slots[:count]) == list(np.flatnonzero(phy2log[layer] == expert))


def test_the_published_example_with_numpy():
    phy2log, log2phy, logcnt = rebalance_experts(np.array(WEIGHT), 16, 4, 2, 8, policy="eplb")
    assert phy2log.tolist() == PHY2LOG
    assert log2phy[0].tolist()[:5] == [[12, -1], [15, 13], [11, -1], [6, -1], [7, 5]]
    assert logcnt[0].tolist() == [1, 2, 1, 1, 2, 2, 1, 1, 1, 1, 2, 1]
    assert phy2log.dtype == log2phy.dtype == logcnt.dtype == np.int64
    assert isinstance(phy2log, np.ndarray)


def test_the_published_example_with_torch():
    plan = rebalance_experts(torch.tensor(WEIGHT), 16, 4, 2, 8, policy="eplb")
    assert all(isinstance(array, torch.Tensor) and array.dtype == torch.int64 for array in plan)
    assert plan[0].tolist() == PHY2LOG
    numpy_plan = rebalance_experts(np.array(WEIGHT), 16, 4, 2, 8, policy="eplb")
    for tensor, array in zip(plan, numpy_plan):
        assert tensor.tolist() == array.tolist()


@pytest.mark.parametrize("kind", [torch.float16, torch.float32, torch.int32, torch.int64])
def test_any_kind_of_tensor(kind):
    assert rebalance_experts(torch.tensor(WEIGHT, dtype=kind), 16, 4, 2, 8, policy="eplb")[0].tolist() == PHY2LOG


class AnotherDefaultDevice(torch.overrides.TorchFunctionMode):
    """What torch.set_default_device does, which torch has from 2.0 on; "meta" has no memory to write to."""

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        keywords = dict(keywords or {})
        if function in (torch.empty, torch.as_tensor) and keywords.get("device") is None:
            keywords["device"] = "meta"
        return function(*arguments, **keywords)


def test_another_default_device_changes_nothing():
    weight = torch.tensor(WEIGHT)
    expected = rebalance_experts_with_shares(weight, 16, 4, 2, 8)
    with AnotherDefaultDevice():
        assert torch.empty(1).device.type == "meta"
        plan = rebalance_experts_with_shares(weight, 16, 4, 2, 8, previous=expected.phy2log.numpy())
        shares = solve_shares(weight, expected.phy2log, 8)
        kept = keep_slots(plan.phy2log, expected.phy2log, 8)
    fresh = rebalance_experts_with_shares(weight, 16, 4, 2, 8, previous=expected.phy2log)
    assert all(torch.equal(a, b) for a, b in zip(plan, fresh, strict=True))
    assert torch.equal(shares, solve_shares(weight, expected.phy2log, 8))
    assert torch.equal(kept, keep_slots(fresh.phy2log, expected.phy2log, 8))


def test_views_and_lists_are_taken_as_they_are():
    wide = np.zeros((12, 4))
    wide[:, ::2] = np.array(WEIGHT).T
    assert rebalance_experts(wide[:, ::2].T, 16, 4, 2, 8, policy="eplb")[0].tolist() == PHY2LOG
    assert rebalance_experts(WEIGHT, 16, 4, 2, 8, policy="eplb")[0].tolist() == PHY2LOG


def test_eplb_is_the_published_algorithm(published):
    random = np.random.default_rng(1)
    for trial in range(100):
        nodes, groups_per_node, gpus_per_node = (int(random.integers(1, 4)) for _ in range(3))
        groups = nodes * groups_per_node if trial % 3 else nodes * groups_per_node + 1
        gpus = nodes * gpus_per_node
        experts = groups * int(random.integers(1, 9))
        replicas = gpus * (-(-experts // gpus) + int(random.integers(0, 4)))
        # No near ties, which this copy breaks as doubles round, and EPLB and we as floats do.
        weight = torch.from_numpy(random.lognormal(9, 1.5, (3, experts)).astype(np.float32))
        hierarchical = groups % nodes == 0
        theirs = published.rebalance_experts(weight, replicas, groups, nodes, gpus, enable_hierarchical=hierarchical)
        ours = rebalance_experts(weight, replicas, groups, nodes, gpus, policy="eplb")
        for name, mine, reference in zip(("phy2log", "log2phy", "logcnt"), ours, theirs):
            assert mine.dtype == reference.dtype
            if name == "log2phy":
                # Replicas of an expert weigh the same, and torch.sort orders equals as it likes.
                mine, reference = mine.sort(-1).values, reference.sort(-1).values
            assert torch.equal(mine, reference), (name, trial, experts, replicas, groups, nodes, gpus)


@pytest.mark.parametrize(
    "experts, replicas, groups, nodes, gpus",
    [(64, 80, 1, 1, 8), (64, 80, 8, 4, 8), (60, 64, 1, 2, 8), (12, 16, 3, 2, 8), (4, 8, 1, 1, 1), (8, 8, 2, 2, 4)],
)
def test_our_own_plans_are_sound_and_more_level(experts, replicas, groups, nodes, gpus):
    weight = lognormal(experts, 3, experts)
    ours = rebalance_experts(weight, replicas, groups, nodes, gpus, proposals=20_000)
    eplb = rebalance_experts(weight, replicas, groups, nodes, gpus, policy="eplb")
    expect_sound(weight, ours, replicas)
    expect_sound(weight, eplb, replicas)
    assert (
        level(weight, ours[0], gpus, equal_shares(ours[0], ours[2]))
        >= level(weight, eplb[0], gpus, equal_shares(eplb[0], eplb[2])) - 1e-9
    )
    if groups % nodes == 0:
        node_of_slot = np.arange(replicas) // (replicas // nodes)
        for row in ours[0]:
            for group in range(groups):
                assert len(set(node_of_slot[row // (experts // groups) == group])) == 1


def test_shares_make_a_layer_exactly_level():
    weight = lognormal(1, 4, 128)
    plan = rebalance_experts_with_shares(weight, 160, 1, 1, 16)
    expect_sound(weight, plan[:3], 160)
    assert level(weight, plan.phy2log, 16, plan.shares) > 1 - 1e-6
    assert plan.shares.dtype == np.float64
    sums = np.zeros_like(weight)
    np.add.at(sums, (np.arange(4)[:, None], plan.phy2log), plan.shares)
    np.testing.assert_allclose(sums, 1)
    # Solved for the placement alone they are others, and as level.
    assert level(weight, plan.phy2log, 16, solve_shares(weight, plan.phy2log, 16)) > 1 - 1e-6
    tensors = rebalance_experts_with_shares(torch.from_numpy(weight), 160, 1, 1, 16)
    assert torch.equal(tensors.shares, torch.from_numpy(plan.shares))


def test_shares_for_the_published_placement_do_not_do_worse():
    weight = lognormal(2, 4, 128)
    eplb = rebalance_experts_with_shares(weight, 160, 1, 1, 16, policy="eplb")
    assert level(weight, eplb.phy2log, 16, eplb.shares) >= level(
        weight, eplb.phy2log, 16, equal_shares(eplb.phy2log, eplb.logcnt)
    )


def test_what_stays_on_a_gpu_keeps_its_slot():
    before = lognormal(3, 2, 64)
    after = before * np.random.default_rng(4).uniform(0.9, 1.1, before.shape)
    first = rebalance_experts(before, 80, 1, 1, 8, proposals=5_000)[0]
    fresh = rebalance_experts(after, 80, 1, 1, 8, proposals=5_000)[0]
    second = rebalance_experts(after, 80, 1, 1, 8, proposals=5_000, previous=first)[0]
    np.testing.assert_array_equal(keep_slots(second, first, 8), second)
    assert (second == first).sum() >= (keep_slots(fresh, first, 8) == first).sum()
    for mapping in (torch.from_numpy(second), second):
        assert keep_slots(mapping, first, 8).tolist() == second.tolist()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_replicas": 15}, "num_replicas: 15; must be a multiple of num_gpus, 8"),
        ({"num_replicas": 8}, "num_replicas: 8; must be at least num_experts, 12"),
        ({"num_replicas": -8}, "num_replicas: -8"),
        ({"num_replicas": 10**9}, "num_replicas: 1000000000 in 2 layers; at most 67108864 in all"),
        ({"weight": np.full((2, 12), 1 + 2j)}, "weight: complex numbers; must be real"),
        ({"weight": torch.full((2, 12), 1 + 2j)}, "weight: complex numbers; must be real"),
        ({"num_groups": 5, "num_nodes": 1}, "num_groups: 5; must divide num_experts, 12"),
        ({"num_groups": 3, "num_nodes": 3}, "num_nodes: 3; must divide num_gpus, 8"),
        ({"num_gpus": 0}, "num_gpus: 0"),
        ({"num_gpus": 2**40}, "num_gpus: 1099511627776; must be below 2^31"),
        ({"num_gpus": 8.0}, "num_gpus: 8.0; must be an integer"),
        ({"weight": [1, 2]}, "weight: 1 dimensions; must have 2"),
        ({"weight": np.zeros((0, 12))}, "weight: shape (0, 12)"),
        ({"weight": [[1.0] * 11 + [float("nan")]]}, "weight[0][11]: nan; must be finite"),
        ({"weight": [[1.0] * 11 + [-1]]}, "weight[0][11]: -1"),
        ({"policy": "best"}, "policy: 'best'; must be one of 'cost-aware', 'eplb'"),
        ({"previous": np.zeros((1, 16))}, "previous: shape (1, 16); must be (2, 16)"),
        ({"previous": np.full((2, 16), 12)}, "previous[0][0]: 12; must lie in -1 .. 11"),
    ],
)
def test_errors_name_argument_value_and_limit(change, message):
    arguments = {"weight": WEIGHT, "num_replicas": 16, "num_groups": 4, "num_nodes": 2, "num_gpus": 8, **change}
    with pytest.raises(PlannerError, match=re.escape(message)):
        rebalance_experts(**arguments)
    # EPLB asserts.
    assert issubclass(PlannerError, AssertionError)


def test_threads_get_the_same_plan():
    weight = lognormal(5, 2, 64)
    expected = rebalance_experts(weight, 80, 1, 1, 8, proposals=2_000)[0]
    plans = []
    threads = [
        threading.Thread(target=lambda: plans.append(rebalance_experts(weight, 80, 1, 1, 8, proposals=2_000)[0]))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(plans) == 4
    for plan in plans:
        np.testing.assert_array_equal(plan, expected)


def test_torch_is_only_imported_for_tensors():
    code = """
import sys
import numpy, ballast_planner
ballast_planner.rebalance_experts(numpy.ones((1, 4)), 4, 1, 1, 2)
sys.exit("torch" in sys.modules)
"""
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_numpy_is_not_needed_for_tensors():
    code = """
import torch
import ballast_planner
from ballast_planner import _arrays
_arrays._NumPy = None
ballast_planner.rebalance_experts_with_shares(torch.ones(1, 4), 4, 1, 1, 2)
"""
    subprocess.run([sys.executable, "-I", "-c", code], check=True)


def test_the_library_needs_glibc_alone_and_shows_its_functions_alone():
    library = Path(ballast_planner.__file__).with_name("libballast_planner.so")

    def readelf(*options):
        return subprocess.run(["readelf", "-W", *options, library], check=True, capture_output=True, text=True).stdout

    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d")))
    assert needed <= {"libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}, "run .ci/setup.sh"
    shown = [line.split()[7] for line in readelf("--dyn-syms").splitlines() if re.search(r"GLOBAL +DEFAULT +\d", line)]
    assert shown and all(name.startswith("ballast_planner_") for name in shown), shown
    assert int(max(re.findall(r"GLIBC_2\.(\d+)", readelf("-V")), key=int)) <= 35


def test_the_metadata_is_that_of_the_tree():
    assert importlib.metadata.version("ballast-planner") == ballast_planner.version()
    (plugin,) = importlib.metadata.distribution("ballast-planner").entry_points
    assert (plugin.group, plugin.name) == ("vllm.general_plugins", "ballast_eplb")
