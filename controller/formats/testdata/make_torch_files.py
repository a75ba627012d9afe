#!/usr/bin/env python3
"""Makes the .pt files beside it, with a real torch: `python3 make_torch_files.py`, in any environment that has torch.

What SGLang's expert distribution recorder dumps in its modes, small; placements as its --init-expert-location takes
them; and files that a reader must refuse. Those made by torch 1.13 (Debian 12) are named *.torch113.pt: its archives
have no byteorder entry.
"""
import collections
import os
import pathlib

import torch

HERE = pathlib.Path(__file__).parent
OLD = torch.__version__.startswith("1.13")
SUFFIX = ".torch113.pt" if OLD else ".pt"


def save(name, value, **options):
    torch.save(value, HERE / (name + SUFFIX), **options)


# [steps 2][layers 3][experts 4]; layer 0 is dense.
COUNTS = [[[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]], [[0, 0, 0, 0], [10, 20, 30, 40], [50, 60, 70, 80]]]


def stat(dtype):
    return {"rank": 0, "logical_count": torch.tensor(COUNTS, dtype=dtype), "average_utilization_rate_over_window": None}


# 3 layers of 4 experts in 6 slots.
MAP = torch.tensor([[0, 1, 2, 3, 0, 1], [0, 1, 2, 3, 3, 2], [3, 2, 1, 0, 1, 0]])


def record(passed, mode, lengths, ids):
    return {
        "forward_pass_id": passed,
        "rank": 0,
        "gatherer_key": "primary",
        "input_ids": list(range(ids.shape[1])),
        "positions": list(range(ids.shape[1])),
        "extend_seq_lens": lengths,
        "forward_mode": mode,
        "topk_ids_of_layer": ids,
        "misc_objects": [],
    }


def tokens():
    # Room for 8 experts a token, of which the model uses 2; the second pass has a token of padding.
    prefill = torch.full((3, 3, 8), -1, dtype=torch.int32)
    prefill[1, :, :2] = torch.tensor([[0, 1], [2, 4], [5, 0]])
    prefill[2, :, :2] = torch.tensor([[0, 1], [2, 3], [4, 0]])
    decode = torch.full((3, 2, 8), -1, dtype=torch.int32)
    decode[1, :1, :2] = torch.tensor([[3, 1]])
    decode[2, :1, :2] = torch.tensor([[5, 4]])
    return {
        "records": [record(7, 1, [2, 1], prefill), record(8, 2, None, decode)],
        "last_physical_to_logical_map": MAP,
    }


def passes():
    counts = torch.arange(18, dtype=torch.int32).reshape(3, 6)
    counts[0] = 0
    one = {"forward_pass_id": 1, "rank": 0, "gatherer_key": "primary", "global_physical_count": counts}
    return {"records": [one, dict(one, forward_pass_id=2)], "last_physical_to_logical_map": MAP}


def placements():
    def changed(row, slot, expert):
        other = MAP.clone()
        other[row, slot] = expert
        return other

    rows = MAP.tolist()
    values = {
        "int32": MAP.to(torch.int32),
        "list": rows,
        "float": MAP.to(torch.float32),
        "flat": MAP[0],
        "negative": changed(1, 2, -1),
        # Slots 3 and 4 of row 1 are all that expert 3 has there.
        "missing": torch.where(torch.tensor([[False], [True], [False]]) & (MAP == 3), 0, MAP),
        "ragged": [rows[0], rows[1][:5], rows[2]],
        "text": [[0, "one", 2, 3, 0, 1]],
        "number": 7,
    }
    for name, value in values.items():
        save("placement_" + name, {"physical_to_logical_map": value})
    save("placement_more", {"physical_to_logical_map": MAP, "policy": "eplb"})


class Evil:
    """Runs a command when Python unpickles it."""

    def __reduce__(self):
        return os.system, ("false",)


def main():
    save("stat", stat(torch.int32))
    placements()
    if OLD:
        return
    save("stat_int64", stat(torch.int64))
    save("stat_float32", stat(torch.float32))
    save("stat_float64", stat(torch.float64))
    save("stat_protocol4", stat(torch.int32), pickle_protocol=4)
    # A view that is neither contiguous nor at its storage's start.
    wide = torch.zeros(3, 4, 5, dtype=torch.int64)
    view = wide[1:, :, 1:].permute(0, 2, 1)[:, :3, :]
    view.copy_(torch.tensor(COUNTS))
    save("stat_strided", {"logical_count": view})
    save("ordered", collections.OrderedDict(logical_count=torch.tensor(COUNTS[0], dtype=torch.int32)))
    save("per_token", tokens())
    save("per_pass", passes())
    save("refused_half", stat(torch.float16))
    save("refused_module", {"logical_count": torch.nn.Parameter(torch.ones(2, 2))})
    save("refused_command", {"logical_count": Evil()})
    save("refused_placement", {"physical_to_logical_map": MAP})
    save("refused_nan", {"logical_count": torch.tensor([[1.0, float("nan")]])})
    save("refused_negative", {"logical_count": torch.tensor([[1, 2], [3, -4]])})
    save("refused_shape", {"logical_count": torch.tensor([1, 2])})
    torch.save(stat(torch.int32), HERE / "refused_legacy.pt", _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
