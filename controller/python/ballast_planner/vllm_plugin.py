"""What vLLM loads in each of its processes: entry point "ballast_eplb" of the group "vllm.general_plugins".

vLLM knows one EPLB policy by name, "default", and its asynchronous mode allows no other. So the plug-in puts Ballast's
class in that place. BALLAST_EPLB_POLICY chooses: "cost-aware" (the default), "eplb" (the published algorithm, with
Ballast's speed) or "off". VLLM_PLUGINS, where it is set, must name ballast_eplb.
"""

import logging
import os


def register() -> None:
    """May be called any number of times. Raises ValueError when BALLAST_EPLB_POLICY is none of the above.

    vLLM does not catch what a plug-in raises: a vLLM without one of the policy interfaces that vllm_policy.py knows goes
    on with what it has.
    """
    name = os.environ.get("BALLAST_EPLB_POLICY", "cost-aware")
    if name == "off":
        return
    # vLLM and PyTorch: only now, and only where the plug-in is wanted.
    try:
        from vllm.distributed.eplb.policy import EPLB_POLICIES

        from .vllm_policy import POLICIES
    except ImportError as error:
        logging.getLogger(__name__).warning("this vLLM has no EPLB policy that can be replaced: %s", error)
        return

    if name not in POLICIES:
        raise ValueError(f"BALLAST_EPLB_POLICY: {name!r}; must be one of {', '.join(sorted(POLICIES))} or off")
    EPLB_POLICIES["default"] = POLICIES[name]
