"""A device that is not there: its tensors lie on the CPU, say that they do not, and every wait for them is counted."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

DEVICE = torch.device("lazy")
"""What they say: a device that torch can name without a driver."""

_aten = torch.ops.aten
_WAITS = {_aten._local_scalar_dense: "number", _aten.nonzero: "nonzero", _aten._unique2: "unique"}
_WAITS |= {_aten.unique_consecutive: "unique", _aten.masked_select: "nonzero", _aten.equal: "number"}


class Pretended(torch.Tensor):
    """A tensor of `DEVICE`."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> Pretended:
        made = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} outside of PretendedDevice")


class _Made(TorchFunctionMode):
    """What is made of numbers is made on the CPU and moved, and back: torch would ask the device itself."""

    def __init__(self, waits: Counter[str], copied: list[int]) -> None:
        super().__init__()
        self._waits, self._copied = waits, copied

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist and isinstance(args[0], Pretended):
            self._waits["copy"] += 1
            self._copied.append(args[0].numel())
            return args[0].held.tolist()
        if func not in (torch.tensor, torch.as_tensor) or torch.device(kwargs.get("device") or "cpu") != DEVICE:
            return func(*args, **kwargs)
        del kwargs["device"]
        return func(*args, **kwargs).to(DEVICE)


class PretendedDevice(TorchDispatchMode):
    """Inside, tensors can be made on `DEVICE` and moved there and back.

    Attributes:
        waits: how often the CPU waited for the device, by what for: "copy", or something that depends on its numbers.
        copied: of every copy to the CPU how many numbers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.copied: list[int] = []
        self._made = _Made(self.waits, self.copied)

    def __enter__(self) -> PretendedDevice:
        self._made.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._made.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        found: list[Pretended] = []

        def unwrap(value: Any) -> Any:
            if isinstance(value, Pretended):
                found.append(value)
                return value.held
            return torch.device("cpu") if isinstance(value, torch.device) and value == DEVICE else value

        given = kwargs.get("device")
        plain = tree_map(unwrap, (args, kwargs))
        on_device = given == DEVICE or (bool(found) and given is None)
        if func._overloadpacket is _aten.copy_:
            on_device = isinstance(args[0], Pretended)
        if found and not on_device:
            self.waits["copy"] += 1
            self.copied.append(max(one.numel() for one in found))
        elif found and func._overloadpacket in _WAITS:
            self.waits[_WAITS[func._overloadpacket]] += 1
        if on_device and func._overloadpacket is _aten._local_scalar_dense:
            on_device = False
        result = func(*plain[0], **plain[1])
        if not on_device:
            return result
        of_held = {id(one.held): one for one in found}  # what is changed in place stays the tensor that it was

        def wrap(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            return of_held[id(value)] if id(value) in of_held else Pretended(value)

        return tree_map(wrap, result)
