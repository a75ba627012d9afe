"""Expert placements for MoE serving: a drop-in for DeepSeek's EPLB.

    from ballast_planner import rebalance_experts
    phy2log, log2phy, logcnt = rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_gpus)

NumPy arrays in, NumPy arrays out; PyTorch tensors (of any device) in, CPU tensors out, as EPLB returns them. Neither is
imported unless it is needed. Calls are pure (the same input gives the same output), hold no lock and release the GIL.

Words are EPLB's: a logical expert is an expert of the model, a physical expert one replica of it; physical expert p of
a layer is a slot of GPU p // (num_replicas // num_gpus).
"""

import ctypes
import operator
from typing import Any, NamedTuple, Optional, Tuple

from . import _library
from ._arrays import arrays_of

__all__ = [
    "PlannerError",
    "Plan",
    "keep_slots",
    "rebalance_experts",
    "rebalance_experts_with_shares",
    "solve_shares",
    "version",
]

_POLICIES = {"cost-aware": 0, "eplb": 1}
_EQUAL_SPLIT, _SHARES = 0, 1
_MOST_REPLICAS = 2**26


class PlannerError(ValueError, AssertionError):
    """A request that breaks a rule; names the argument, its value and the limit.

    Also an AssertionError, which EPLB answers such requests with.
    """


class Plan(NamedTuple):
    """EPLB's three arrays, and the shares that go with them."""

    phy2log: Any  # [layers, num_replicas] int64: each physical expert's logical expert
    log2phy: Any  # [layers, experts, most replicas of one] int64: its physical experts, then -1
    logcnt: Any  # [layers, experts] int64: its number of replicas
    shares: Any  # [layers, num_replicas] float64: the part of the logical expert's tokens that each gets


def version() -> str:
    """The version of the planner."""
    return _library.lib.ballast_planner_version().decode()


def rebalance_experts(
    weight: Any,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    *,
    policy: str = "cost-aware",
    proposals: int = 0,
    previous: Optional[Any] = None,
) -> Tuple[Any, Any, Any]:
    """Places experts for an engine that splits an expert's tokens equally over its replicas.

    Arguments:
        weight: [layers, experts], the load of every logical expert: finite, at least 0
        num_replicas: physical experts of a layer; at least experts, a multiple of num_gpus
        num_groups: expert groups. Where num_nodes divides it, every group stays whole on a node; it must then divide
            the experts. Otherwise groups are ignored
        num_nodes: nodes, that is blocks of num_gpus // num_nodes GPUs with fast links between them
        num_gpus: GPUs; where groups are placed, a multiple of num_nodes
        policy: "cost-aware", or "eplb": the published algorithm, to the bit
        proposals: changes that the search of "cost-aware" tries in a layer; 0: the default, 200,000
        previous: [layers, num_replicas], the phy2log in force (-1: an empty slot). What stays on its GPU keeps its
            slot, and "cost-aware" lets as much stay as its placement allows

    Returns (phy2log, log2phy, logcnt) as in Plan: shapes, dtype and order are EPLB's.
    Raises PlannerError.
    """
    plan = _rebalance(weight, num_replicas, num_groups, num_nodes, num_gpus, policy, _EQUAL_SPLIT, proposals, previous)
    return plan.phy2log, plan.log2phy, plan.logcnt


def rebalance_experts_with_shares(
    weight: Any,
    num_replicas: int,
    num_groups: int,
    num_nodes: int,
    num_gpus: int,
    *,
    policy: str = "cost-aware",
    previous: Optional[Any] = None,
) -> Plan:
    """The same for an engine that can follow shares.

    With "cost-aware" every layer is exactly level wherever experts <= num_gpus * (slots of a GPU - 1), whatever the
    load (node by node where groups are placed). With "eplb" the shares are those that suit its placement best.
    """
    return _rebalance(weight, num_replicas, num_groups, num_nodes, num_gpus, policy, _SHARES, 0, previous)


def solve_shares(weight: Any, phy2log: Any, num_gpus: int) -> Any:
    """The shares that make a placement as level as it can be under a load, [layers, num_replicas] float64.

    `phy2log` [layers, num_replicas] is any placement that has every logical expert in every layer; -1 is an empty slot.
    """
    arrays = arrays_of(weight)
    weight = _weight(arrays, weight)
    phy2log = _matrix(arrays.int64(phy2log), "phy2log")
    layers, experts = weight.shape
    _same_layers(phy2log, "phy2log", layers)
    shares = arrays.empty((layers, phy2log.shape[1]), arrays.float64_type)
    _check(
        _library.lib.ballast_planner_solve_shares(
            *_int32(num_layers=layers, num_experts=experts, num_replicas=phy2log.shape[1], num_gpus=num_gpus),
            arrays.pointer(weight),
            arrays.pointer(phy2log),
            arrays.pointer(shares),
        )
    )
    return shares


def keep_slots(phy2log: Any, previous: Any, num_gpus: int) -> Any:
    """`phy2log` with every GPU's slots reordered such that what the GPU held in `previous` stays in its slot.

    Both are [layers, num_replicas]; -1 is an empty slot. Returns a new array.
    """
    arrays = arrays_of(phy2log)
    kept = _matrix(arrays.int64(phy2log, copy=True), "phy2log")
    previous = _previous(arrays, previous, kept.shape)
    _check(
        _library.lib.ballast_planner_keep_slots(
            *_int32(num_layers=kept.shape[0], num_replicas=kept.shape[1], num_gpus=num_gpus),
            arrays.pointer(previous),
            arrays.pointer(kept),
        )
    )
    return kept


def _rebalance(weight, num_replicas, num_groups, num_nodes, num_gpus, policy, split, proposals, previous):
    if policy not in _POLICIES:
        raise PlannerError(f"policy: {policy!r}; must be one of {', '.join(map(repr, _POLICIES))}")
    arrays = arrays_of(weight)
    weight = _weight(arrays, weight)
    request = _library.Request(struct_size=ctypes.sizeof(_library.Request))
    fields = {
        "num_layers": weight.shape[0],
        "num_experts": weight.shape[1],
        "num_replicas": num_replicas,
        "num_groups": num_groups,
        "num_nodes": num_nodes,
        "num_gpus": num_gpus,
        "proposals": proposals,
    }
    for name, value in zip(fields, _int32(**fields)):
        setattr(request, name, value)
    request.policy = _POLICIES[policy]
    request.split = split
    request.weight = arrays.pointer(weight)
    if previous is not None:
        previous = _previous(arrays, previous, (request.num_layers, request.num_replicas))
        request.previous = arrays.pointer(previous)
    # Allocated before the library has looked at the sizes: none may be negative, nor so large that a slip takes all
    # memory.
    if request.num_layers * request.num_replicas > _MOST_REPLICAS:
        raise PlannerError(
            f"num_replicas: {request.num_replicas} in {request.num_layers} layers; at most {_MOST_REPLICAS} in all"
        )
    shape = (request.num_layers, max(0, request.num_replicas))
    phy2log = arrays.empty(shape, arrays.int64_type)
    rank = arrays.empty(shape, arrays.int64_type)
    logcnt = arrays.empty(tuple(weight.shape), arrays.int64_type)
    shares = arrays.empty(shape, arrays.float64_type)
    _check(
        _library.lib.ballast_planner_rebalance(
            ctypes.byref(request), *map(arrays.pointer, (phy2log, rank, logcnt, shares))
        )
    )
    width = int(logcnt.max())
    log2phy = arrays.empty((*logcnt.shape, width), arrays.int64_type)
    _check(
        _library.lib.ballast_planner_log2phy(
            request.num_layers,
            request.num_experts,
            request.num_replicas,
            arrays.pointer(phy2log),
            arrays.pointer(rank),
            width,
            arrays.pointer(log2phy),
        )
    )
    return Plan(phy2log, log2phy, logcnt, shares)


def _matrix(array, name):
    if len(array.shape) != 2:
        raise PlannerError(f"{name}: {len(array.shape)} dimensions; must have 2")
    if 0 in array.shape:
        raise PlannerError(f"{name}: shape {tuple(array.shape)}; every dimension must be at least 1")
    return array


def _weight(arrays, weight):
    if arrays.is_complex(weight):
        raise PlannerError("weight: complex numbers; must be real")
    return _matrix(arrays.float64(weight), "weight")


def _same_layers(array, name, layers):
    if array.shape[0] != layers:
        raise PlannerError(f"{name}: {array.shape[0]} layers; weight has {layers}")


def _previous(arrays, previous, shape):
    previous = _matrix(arrays.int64(previous), "previous")
    if tuple(previous.shape) != tuple(shape):
        raise PlannerError(f"previous: shape {tuple(previous.shape)}; must be {tuple(shape)}")
    return previous


def _int32(**fields):
    """The values as integers; what 32 bits cannot hold, and what is no whole number, is an error."""
    values = []
    for name, value in fields.items():
        try:
            value = operator.index(value)
        except TypeError:
            raise PlannerError(f"{name}: {value!r}; must be an integer") from None
        if not -(2**31) <= value < 2**31:
            raise PlannerError(f"{name}: {value}; must be below 2^31")
        values.append(value)
    return values


def _check(code):
    if code == _library.OK:
        return
    message = _library.lib.ballast_planner_last_error().decode()
    if code == _library.INVALID_ARGUMENT:
        raise PlannerError(message)
    if code == _library.OUT_OF_MEMORY:
        raise MemoryError(message)
    raise RuntimeError(message)
