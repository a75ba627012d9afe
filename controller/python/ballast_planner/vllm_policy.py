"""EPLB policies for vLLM, by its own interface."""

from typing import Optional

import torch
from vllm.distributed.eplb.policy.abstract import AbstractEplbPolicy

from . import keep_slots, rebalance_experts


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
    ) -> torch.Tensor:
        previous = old_global_expert_indices
        # After ranks joined or left there is nothing to keep slots of.
        if previous is not None and tuple(previous.shape) != (weight.shape[0], num_replicas):
            previous = None
        phy2log, _, _ = rebalance_experts(
            weight, num_replicas, num_groups, num_nodes, num_ranks, policy=cls._policy, previous=previous
        )
        return phy2log

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
