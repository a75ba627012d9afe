"""libballast_planner.so; its header, ballast_planner.h, is beside it."""

import ctypes
import os

ABI_VERSION = 1
OK, INVALID_ARGUMENT, OUT_OF_MEMORY = 0, 1, 2


class Request(ctypes.Structure):
    """ballast_planner_request"""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("num_layers", ctypes.c_int32),
        ("num_experts", ctypes.c_int32),
        ("num_replicas", ctypes.c_int32),
        ("num_groups", ctypes.c_int32),
        ("num_nodes", ctypes.c_int32),
        ("num_gpus", ctypes.c_int32),
        ("weight", ctypes.c_void_p),
        ("policy", ctypes.c_int32),
        ("split", ctypes.c_int32),
        ("proposals", ctypes.c_int64),
        ("previous", ctypes.c_void_p),
    ]


def _load():
    path = os.path.join(os.path.dirname(__file__), "libballast_planner.so")
    library = ctypes.CDLL(path)
    i32, pointer = ctypes.c_int32, ctypes.c_void_p
    for name, result, arguments in (
        ("abi_version", i32, []),
        ("version", ctypes.c_char_p, []),
        ("last_error", ctypes.c_char_p, []),
        ("rebalance", i32, [ctypes.POINTER(Request)] + [pointer] * 4),
        ("log2phy", i32, [i32, i32, i32, pointer, pointer, i32, pointer]),
        ("keep_slots", i32, [i32, i32, i32, pointer, pointer]),
        ("solve_shares", i32, [i32, i32, i32, i32, pointer, pointer, pointer]),
    ):
        function = getattr(library, "ballast_planner_" + name)
        function.restype = result
        function.argtypes = arguments
    if library.ballast_planner_abi_version() < ABI_VERSION:
        raise ImportError(f"{path}: ABI {library.ballast_planner_abi_version()}; this package needs {ABI_VERSION}")
    return library


lib = _load()
