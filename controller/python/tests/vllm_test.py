"""The policy beside vLLM's own classes, plug-in loader and tests, of the release that .ci/peers.txt pins.

Only the modules that matter are there, not vLLM: what they import of the rest is stood in for below, with what the
pinned sources themselves say.
"""

import abc
import ast
import importlib
import importlib.util
import inspect
import sys
import types
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pytest
import torch

import ballast_planner

PEERS = Path("external/system/peers/vllm").resolve()
GOLDEN = "test_basic_rebalance"
EXTREME = "test_extreme_weight_imbalance"


def _function(path, name):
    """A function of a module that cannot be imported whole."""
    tree = ast.parse(path.read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    scope = {"torch": torch}
    exec(compile(ast.Module([found], []), str(path), "exec"), scope)  # noqa: S102
    return scope[name]


def _module(name, **content):
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module
    return module


@pytest.fixture(scope="module", autouse=True)
def vllm():
    """The pinned modules, importable as `vllm`."""
    assert PEERS.is_dir(), "vLLM's modules are missing: run .ci/setup.sh"
    for name in ("vllm", "vllm.distributed", "vllm.distributed.eplb"):
        _module(name).__path__ = [str(PEERS / name.replace(".", "/"))]
    # The names of policies that the configuration accepts.
    parallel = ast.parse((PEERS / "vllm/config/parallel.py").read_text())
    (option,) = (
        node.value
        for node in parallel.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "EPLBPolicyOption"
    )
    names = tuple(element.value for element in ast.walk(option.slice) if isinstance(element, ast.Constant))
    _module("vllm.config").__path__ = []
    _module("vllm.config.parallel", EPLBPolicyOption=Literal[names])
    sys.modules["vllm"].envs = _module("vllm.envs", VLLM_PLUGINS=None)
    state = PEERS / "vllm/distributed/eplb/eplb_state.py"
    _module(
        "vllm.distributed.eplb.eplb_state",
        compute_logical_maps=_function(state, "compute_logical_maps"),
        _compute_eplb_load_stats=_function(state, "_compute_eplb_load_stats"),
    )
    _module("vllm.platforms", current_platform=types.SimpleNamespace(is_xpu=lambda: False))
    return importlib.import_module("vllm.distributed.eplb.policy")


@pytest.fixture
def default(vllm):
    """vLLM's own policy, put back after the test."""
    original = vllm.EPLB_POLICIES["default"]
    yield vllm.DefaultEplbPolicy
    vllm.EPLB_POLICIES["default"] = original


def load_plugins():
    """As every vLLM process does at its start."""
    plugins = importlib.import_module("vllm.plugins")
    plugins.plugins_loaded = False
    plugins.load_general_plugins()


def test_the_plug_in_takes_the_only_place_there_is(vllm, default, monkeypatch):
    monkeypatch.delenv("BALLAST_EPLB_POLICY", raising=False)
    assert get_args(sys.modules["vllm.config.parallel"].EPLBPolicyOption) == ("default",)
    load_plugins()
    policy = vllm.EPLB_POLICIES["default"]
    assert policy.__name__ == "BallastEplbPolicy"
    assert issubclass(policy, vllm.AbstractEplbPolicy)
    assert not inspect.isabstract(policy)
    load_plugins()
    assert vllm.EPLB_POLICIES["default"] is policy


@pytest.mark.parametrize("name, expected", [("eplb", "BallastPublishedEplbPolicy"), ("off", "DefaultEplbPolicy")])
def test_the_environment_chooses(vllm, default, monkeypatch, name, expected):
    monkeypatch.setenv("BALLAST_EPLB_POLICY", name)
    load_plugins()
    assert vllm.EPLB_POLICIES["default"].__name__ == expected


def test_a_policy_that_does_not_exist_is_an_error(default, monkeypatch):
    monkeypatch.setenv("BALLAST_EPLB_POLICY", "best")
    with pytest.raises(ValueError, match="BALLAST_EPLB_POLICY: 'best'; must be one of cost-aware, eplb or off"):
        load_plugins()


def test_vllm_can_leave_the_plug_in_out(vllm, default, monkeypatch):
    monkeypatch.setattr(sys.modules["vllm.envs"], "VLLM_PLUGINS", ["another"])
    load_plugins()
    assert vllm.EPLB_POLICIES["default"] is default


FIVE = "weight, num_replicas, num_groups, num_nodes, num_ranks"
THREE_TENSORS = "tuple[torch.Tensor, torch.Tensor, torch.Tensor]"


def load_plugins_into(monkeypatch, parameters, result):
    """Ballast's plug-in in a vLLM whose rebalance_experts takes and returns what is given; None: has no such method."""
    policies()
    monkeypatch.delitem(sys.modules, "ballast_planner.vllm_policy")
    abstract = sys.modules["vllm.distributed.eplb.policy.abstract"]
    scope = {"torch": torch, "ABC": abc.ABC, "abstractmethod": abc.abstractmethod}
    method = f"@classmethod\n @abstractmethod\n def rebalance_experts(cls, {parameters}){result}: ..."
    if parameters is None:
        method = "pass"
    exec(f"class AbstractEplbPolicy(ABC):\n {method}", scope)  # noqa: S102
    monkeypatch.setattr(abstract, "AbstractEplbPolicy", scope["AbstractEplbPolicy"])
    monkeypatch.delenv("BALLAST_EPLB_POLICY", raising=False)
    load_plugins()


@pytest.mark.parametrize("previous", ["", ", old_global_expert_indices=None"])
def test_releases_that_take_three_tensors_get_three(vllm, default, monkeypatch, previous):
    load_plugins_into(monkeypatch, FIVE + previous, f" -> {THREE_TENSORS}")
    policy = vllm.EPLB_POLICIES["default"]
    assert policy.__name__ == "BallastEplbPolicy"
    # As many layers as tensors: one in their place would be taken apart without a word.
    weight = torch.from_numpy(np.random.default_rng(3).lognormal(8, 1, (3, 16)))
    found = policy.rebalance_experts(weight, 24, 2, 2, 4)
    expected = ballast_planner.rebalance_experts(weight, 24, 2, 2, 4)
    assert isinstance(found, tuple)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    if previous:
        old = expected[0].roll(6, 1)
        found = policy.rebalance_experts(weight, 24, 2, 2, 4, old)
        expected = ballast_planner.rebalance_experts(weight, 24, 2, 2, 4, previous=old)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    "parameters, result",
    [
        (FIVE, " -> torch.Tensor"),
        (FIVE + ", old_global_expert_indices=None", ""),
        (FIVE + ", old_global_expert_indices=None", " -> 'Plan'"),
        (FIVE + ", old_global_expert_indices=None", " -> 'torch.Nothing'"),
        (FIVE + ", old_global_expert_indices=None", " -> 'torch Tensor'"),
        (None, ""),
        (FIVE + ", old_global_expert_indices=None", " -> tuple[torch.Tensor, torch.Tensor]"),
        (FIVE + ", topology", " -> torch.Tensor"),
    ],
)
def test_another_interface_keeps_its_own_policy(vllm, default, monkeypatch, caplog, parameters, result):
    load_plugins_into(monkeypatch, parameters, result)
    assert vllm.EPLB_POLICIES["default"] is default
    what = "AbstractEplbPolicy has no rebalance_experts" if parameters is None else "rebalance_experts("
    assert f"no EPLB policy that can be replaced: {what}" in caplog.text


def policies():
    from ballast_planner.vllm_policy import POLICIES

    return POLICIES


def test_signatures_are_the_interfaces(vllm):
    expected = inspect.signature(vllm.AbstractEplbPolicy.rebalance_experts).parameters
    for policy in policies().values():
        found = inspect.signature(policy.rebalance_experts).parameters
        assert list(found) == list(expected)
        assert [p.default for p in found.values()] == [p.default for p in expected.values()]


def vllm_tests(vllm, policy):
    """vLLM's tests of its default policy, about `policy`."""
    default = importlib.import_module("vllm.distributed.eplb.policy.default")
    original = default.DefaultEplbPolicy
    default.DefaultEplbPolicy = policy
    try:
        path = PEERS / "tests/distributed/test_eplb_algo.py"
        spec = importlib.util.spec_from_file_location("test_eplb_algo", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        default.DefaultEplbPolicy = original
    tests = []
    for name, function in vars(module).items():
        if not name.startswith("test_"):
            continue
        marks = getattr(function, "pytestmark", [])
        if not marks:
            tests.append((name, function, ()))
        for mark in marks:
            for values in mark.args[1]:
                values = getattr(values, "values", values)
                tests.append((name, function, values if isinstance(values, tuple) else (values,)))
    return [test for test in tests if test[2] not in (("cuda",), ("xpu",))]


def test_vllms_own_tests_hold_for_the_published_algorithm(vllm):
    tests = vllm_tests(vllm, policies()["eplb"])
    assert GOLDEN in {name for name, _, _ in tests}
    assert len(tests) > 12
    for _, function, values in tests:
        function(*values)


def test_vllms_own_tests_hold_for_ours(vllm):
    policy = policies()["cost-aware"]
    for name, function, values in vllm_tests(vllm, policy):
        # The golden vector is EPLB's, and the other asks for three copies of an expert on the two GPUs of its node.
        if name not in (GOLDEN, EXTREME):
            function(*values)
    phy2log = policy.rebalance_experts(torch.tensor([[1000, 1, 1, 1, 1, 1, 1, 1]]), 12, 2, 2, 4)
    count = torch.bincount(phy2log[0])
    assert count[0] == count.max() == 2


def balancedness(weight, phy2log, gpus):
    from vllm.distributed.eplb.eplb_state import compute_logical_maps

    _, logcnt = compute_logical_maps(phy2log, weight.shape[1])
    load = (weight.double() / logcnt).gather(1, phy2log).view(len(weight), gpus, -1).sum(-1)
    return (load.mean(1) / load.max(1).values).mean().item()


def test_ours_is_more_level_than_vllms_and_moves_less(vllm):
    random = np.random.default_rng(1)
    weight = torch.from_numpy(random.lognormal(8, 1.2, (4, 64)).astype(np.int32))
    later = (weight * torch.from_numpy(random.uniform(0.9, 1.1, weight.shape))).int()
    old = torch.arange(80).remainder(64).repeat(4, 1)
    plans = {}
    for name, policy in [("vllm", vllm.DefaultEplbPolicy), ("ours", policies()["cost-aware"])]:
        first = policy.rebalance_experts(weight, 80, 1, 1, 8, old)
        assert first.device.type == "cpu" and first.dtype == torch.int64 and first.shape == (4, 80)
        plans[name] = (first, policy.rebalance_experts(later, 80, 1, 1, 8, first))
    for i, load in enumerate((weight, later)):
        assert balancedness(load, plans["ours"][i], 8) > balancedness(load, plans["vllm"][i], 8)

    def moved(first, second):
        """Experts that were not on the GPU before."""
        pairs = zip(first.view(-1, 10).tolist(), second.view(-1, 10).tolist())
        return sum(len(set(after) - set(before)) for before, after in pairs)

    assert moved(*plans["ours"]) <= moved(*plans["vllm"])


def test_maps_of_another_size_and_empty_slots_are_taken(vllm):
    weight = torch.ones(1, 8)
    for old in (torch.arange(8)[None], torch.full((1, 12), -1)):
        for policy in policies().values():
            assert policy.rebalance_experts(weight, 12, 1, 1, 4, old).shape == (1, 12)


def test_every_rank_gets_the_same_plan():
    weight = torch.from_numpy(np.random.default_rng(2).lognormal(8, 1, (2, 64)))
    plans = [policies()["cost-aware"].rebalance_experts(weight.clone(), 80, 4, 2, 8) for _ in range(3)]
    assert all(torch.equal(plan, plans[0]) for plan in plans)
