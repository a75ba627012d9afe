"""EPLB policies for vLLM, by its own interface, of which there have been three:

    vLLM 0.13          rebalance_experts(weight, num_replicas, num_groups, num_nodes, num_ranks)
                       -> (phy2log, log2phy, logcnt)
    vLLM 0.14 to 0.18  the same with old_global_expert_indices behind it
    vLLM 0.19 on       with it, -> phy2log

Importing this raises ImportError where vLLM's interface is none of them: a policy that returns something else than its
caller takes apart would end the engine at its first rearrangement.
"""

import inspect
from typing import Any, Optional, get_args, get_origin, get_type_hints

import torch
from vllm.distributed.eplb.policy.abstract import AbstractEplbPolicy

from . import keep_slots, rebalance_experts

_PARAMETERS = ["weight", "num_replicas", "num_groups", "num_nodes", "num_ranks"]
_PREVIOUS = "old_global_expert_indices"


def _returns_three(function: Any) -> bool:
    """Whether rebalance_experts of this vLLM returns three tensors, and not one."""
    parameters = list(inspect.signature(function).parameters)
    try:
        result = get_type_hints(function).get("return")
    except Exception:  # Annotations are evaluated, and may raise whatever there is.
        result = None
    if parameters == [*_PARAMETERS, _PREVIOUS] and result is torch.Tensor:
        return False
    three = get_origin(result) is tuple and get_args(result) == (torch.Tensor,) * 3
    if three and parameters in (_PARAMETERS, [*_PARAMETERS, _PREVIOUS]):
        return True
    raise ImportError(f"rebalance_experts{inspect.signature(function)} is none of the interfaces that are known")


if not hasattr(AbstractEplbPolicy, "rebalance_experts"):
    raise ImportError("AbstractEplbPolicy has no rebalance_experts")
_RETURNS_THREE = _returns_three(AbstractEplbPolicy.rebalance_experts)


class BallastEplbPolicy(AbstractEplbPolicy):
    """Ballast's placement for equal split, which is what vLLM does.

    Every rank computes the same plan from the same load. Experts that stay on a rank keep their slots, and as many stay
    as the new placement allows.
    """

    _policy = "cost-aware"

    @classmethod
    def rebalance_experts(
        cls,
        weight: torch.Tensor,
        num_replicas: int,
        num_groups: int,
        num_nodes: int,
        num_ranks: int,
        old_global_expert_indices: Optional[torch.Tensor] = None,
    ) -> Any:
        previous = old_global_expert_indices
        # After ranks joined or left there is nothing to keep slots of.
        if previous is not None and tuple(previous.shape) != (weight.shape[0], num_replicas):
            previous = None
        plan = rebalance_experts(
            weight, num_replicas, num_groups, num_nodes, num_ranks, policy=cls._policy, previous=previous
        )
        # Where vLLM takes all three its own policy returns them on the load's device.
        return tuple(tensor.to(weight.device) for tensor in plan) if _RETURNS_THREE else plan[0]

    @classmethod
    def preserve_intragpu_slots(cls, phy2log, num_ranks: int, old_phy2log):
        """As vLLM's default policy offers it: the map as it is where its slots do not divide by the ranks."""
        if num_ranks <= 0 or phy2log.shape[1] % num_ranks != 0:
            return phy2log
        return keep_slots(phy2log, old_phy2log, num_ranks)


class BallastPublishedEplbPolicy(BallastEplbPolicy):
    """The published algorithm: what vLLM's default does, in a fraction of the time."""

    _policy = "eplb"


POLICIES = {"cost-aware": BallastEplbPolicy, "eplb": BallastPublishedEplbPolicy}
