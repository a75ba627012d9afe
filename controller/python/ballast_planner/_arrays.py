"""NumPy and PyTorch, as far as the planner needs them. PyTorch is only imported when a tensor comes in."""


class _NumPy:
    def __init__(self):
        import numpy

        self._numpy = numpy
        self.int64_type, self.float64_type = numpy.int64, numpy.float64

    def float64(self, values):
        return self._numpy.ascontiguousarray(_on_cpu(values), dtype=self.float64_type)

    def is_complex(self, values):
        return self._numpy.iscomplexobj(_on_cpu(values))

    def int64(self, values, copy=False):
        array = self._numpy.ascontiguousarray(_on_cpu(values), dtype=self.int64_type)
        return array.copy() if copy else array

    def empty(self, shape, kind):
        return self._numpy.empty(shape, dtype=kind)

    @staticmethod
    def pointer(array):
        return array.ctypes.data


class _Torch:
    """The library reads and writes the CPU's memory: device="cpu" everywhere, whatever torch's default device is."""

    def __init__(self):
        import torch

        self._torch = torch
        self.int64_type, self.float64_type = torch.int64, torch.float64

    def _tensor(self, values, kind):
        return self._torch.as_tensor(values, device="cpu").detach().to(kind).contiguous()

    def float64(self, values):
        return self._tensor(values, self.float64_type)

    def is_complex(self, values):
        return self._torch.as_tensor(values).is_complex()

    def int64(self, values, copy=False):
        tensor = self._tensor(values, self.int64_type)
        return tensor.clone() if copy else tensor

    def empty(self, shape, kind):
        return self._torch.empty(shape, dtype=kind, device="cpu")

    @staticmethod
    def pointer(tensor):
        return tensor.data_ptr()


def _is_tensor(values):
    return type(values).__module__.partition(".")[0] == "torch"


def _on_cpu(values):
    return values.detach().cpu() if _is_tensor(values) else values


def arrays_of(values):
    """The library that `values` are of; what is neither is NumPy's to convert."""
    return _Torch() if _is_tensor(values) else _NumPy()
