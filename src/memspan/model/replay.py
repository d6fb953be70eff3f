"""A decoding step without the Python of every layer: what a decoder layer computes is read once, and replayed.

A layer's forward is traced into a list of torch's operations, whatever its family, with its linear layers and its
attention left whole. Sizes of the batch are found in the list by their values, which nothing else has, so one program
serves any number of rows and tokens, and every layer that computes alike: each layer is compared with its own forward
before it replays one. What cannot be traced, or differs, runs as before.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from memspan.model.memory_api import QueryStep
from memspan.model.packed import PackedLinear, asked_weight, reading_packed

_log = logging.getLogger(__name__)

# Rows and tokens of a trace: primes that no size of a model is, and that cost nothing, for nothing is computed.
_R, _T = 10007, 10009
# Largest difference from a layer's own forward, relative.
_TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}

_library = torch.library.Library("memspan", "DEF")
_library.define("linear(Tensor x, str name, int width) -> Tensor")
_library.impl("linear", lambda x, name, width: x.new_empty(*x.shape[:-1], width), "Meta")
_library.define("attend(Tensor q, Tensor k, Tensor v) -> Tensor")
_library.impl("attend", lambda q, k, v: q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]), "Meta")

Replay = Callable[[Any, tuple[Any, ...], Mapping[str, Any]], Tensor]
"""Runs a layer: the buffers it attends to, and the arguments of its forward."""


class ReplayedLayer(nn.Module):
    """Mixin of a decoder layer that replays its program in decoding steps. Made by `replay_layers`, never by hand."""

    replay: Replay

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        buffers = getattr(kwargs.get("memory"), "buffers", None)
        if buffers is None:
            return super().forward(*args, **kwargs)
        return self.replay(buffers, args, kwargs)


@cache
def _replayed_class(layer_class: type[nn.Module]) -> type[nn.Module]:
    return type(f"Replayed{layer_class.__name__}", (ReplayedLayer, layer_class), {})


@torch.inference_mode()
def replay_layers(model: nn.Module, layers: Sequence[nn.Module]) -> int:
    """Let decoder layers replay their programs in decoding steps, in place; returns how many do.

    Args:
        model: called as `DecodeRows.step` calls it.
        layers: in order.
    """
    try:
        calls = _observe(model, layers)
    except Exception as error:
        _log.info("no layer is replayed in decoding steps: %s", error)
        return 0
    programs: dict[object, _Program | None] = {}
    count = 0
    for place, (layer, call) in enumerate(zip(layers, calls, strict=True)):
        kind = _kind(layer)
        replay = None
        try:
            if kind not in programs:
                programs[kind] = None
                programs[kind] = _Program(layer, call)
            if program := programs[kind]:
                replay = program.bind(layer, place)
        except Exception as error:  # whatever a family does that cannot be traced
            _log.info("layer %d, and those like it, run as they are: %s", place, error)
        if replay is not None and call.fits(replay):
            cast(ReplayedLayer, layer).replay = replay
            layer.__class__ = _replayed_class(type(layer))
            count += 1
    _log.info("%d of %d layers are replayed in decoding steps", count, len(layers))
    return count


def _kind(layer: nn.Module) -> object:
    """Equal for layers whose forwards do the same with other weights: all that is set in their modules is the same."""

    def setting(value: Any) -> object:
        if isinstance(value, tuple):
            return tuple(map(setting, value))
        return value if value is None or isinstance(value, (bool, int, float, str)) else id(value)

    return tuple(
        (
            name,
            type(module),
            tuple((key, tuple(x.shape), x.dtype) for key, x in module.named_parameters(recurse=False)),
            tuple((key, setting(x)) for key, x in vars(module).items() if key[0] != "_" and key != "layer_idx"),
        )
        for name, module in layer.named_modules()
        if not isinstance(module, nn.Linear)  # left whole
    )


class _Observed:
    """Stands for buffers: makes something of all that a layer hands it, and remembers the rest."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        self._attend = attend
        self.asked: list[tuple[Any, ...]] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *settings: Any) -> Tensor:
        self.asked.append((layer, *settings))
        return self._attend(query, key, value)


def _mixed(query_RHTD: Tensor, key_RGTD: Tensor, value_RGTD: Tensor) -> Tensor:
    heads = query_RHTD.shape[1] // key_RGTD.shape[1]
    key_RHTD, value_RHTD = (x.repeat_interleave(heads, dim=1) for x in (key_RGTD, value_RGTD))
    weight_RHT1 = (query_RHTD * key_RHTD).sum(-1, keepdim=True).tanh()
    return (weight_RHT1 * value_RHTD).transpose(1, 2).contiguous()


class _Call:
    """A layer's own forward over two rows of three tokens: what it got and gave."""

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.args, self.kwargs = args, kwargs
        self.asked: tuple[Any, ...] = ()
        self.out = torch.empty(0)

    def fits(self, replay: Replay) -> bool:
        buffers = _Observed(_mixed)
        with reading_packed(QueryStep(buffers=cast(Any, buffers))):
            out = replay(buffers, self.args, self.kwargs)
        if [self.asked] != buffers.asked or out.shape != self.out.shape:
            return False
        error = float((out - self.out).abs().max() / self.out.abs().max())
        return error <= _TOLERANCE.get(out.dtype, 0.0)


def _observe(model: nn.Module, layers: Sequence[nn.Module]) -> list[_Call]:
    calls: list[_Call] = []
    buffers = _Observed(_mixed)
    step = QueryStep(buffers=cast(Any, buffers))

    # Another thread may be encoding with the same model.
    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if kwargs.get("memory") is step:
            calls.append(_Call(args, kwargs))

    def after(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        if kwargs.get("memory") is step:
            (calls[-1].asked,) = buffers.asked
            calls[-1].out = out
            buffers.asked.clear()

    handles = [layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers]
    handles += [layer.register_forward_hook(after, with_kwargs=True) for layer in layers]
    try:
        ids = torch.arange(6).view(2, 3)
        model(input_ids=ids, position_ids=ids, use_cache=False, memory=step)
    finally:
        for handle in handles:
            handle.remove()
    return calls


class _Leaves(TorchFunctionMode):
    """While a layer is traced, in this thread: products with its linear layers' weights stay whole."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        linears = _linears(layer).items()
        self._names = {id(weight): name for name, x in linears for weight in (x.weight, asked_weight(x))}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and id(args[1]) in self._names:
            return torch.ops.memspan.linear(args[0], self._names[id(args[1])], len(args[1]))
        return func(*args, **(kwargs or {}))


def _linears(layer: nn.Module) -> dict[str, nn.Linear]:
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def _tensors_of(layer: nn.Module) -> dict[str, Tensor]:
    return {**dict(layer.named_parameters()), **dict(layer.named_buffers())}


def _product(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias = asked_weight(linear), linear.bias
    if not isinstance(linear, PackedLinear):
        return lambda x: F.linear(x, weight, bias)
    return lambda x: linear.product(x) if linear.reads_packed(x) else F.linear(x, weight, bias)


class _Program:
    """The operations of one layer's forward, for any layer that computes alike."""

    def __init__(self, layer: nn.Module, call: _Call) -> None:
        inputs: dict[str, Tensor] = {}
        args = _with_tensors(call.args, "args", inputs, None)
        kwargs = {name: value for name, value in call.kwargs.items() if name != "memory"}
        kwargs = _with_tensors(kwargs, "kwargs", inputs, None)
        observed = _Observed(torch.ops.memspan.attend)

        def run(*tensors: Tensor) -> Tensor:
            observed.asked.clear()
            by_source = dict(zip(inputs, tensors, strict=True))
            given = _with_tensors(kwargs, "kwargs", inputs, by_source)
            given["memory"] = QueryStep(buffers=cast(Any, observed))
            with _Leaves(layer):
                return layer(*_with_tensors(args, "args", inputs, by_source), **given)

        with torch.inference_mode(False), torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True):
            fakes = [torch.empty(_sizes_of(x), dtype=x.dtype) for x in inputs.values()]
            traced = make_fx(run)(*fakes)
        traced.graph.eliminate_dead_code()
        ((_, *self._settings),) = observed.asked
        self._sources, self._graph = list(inputs), traced
        self._names = {id(tensor): name for name, tensor in _tensors_of(layer).items()}

    def bind(self, layer: nn.Module, place: int) -> Replay:
        """The program with the weights of a layer."""
        tensors, names = _tensors_of(layer), self._names
        settings = [tensors.get(names[id(x)]) if isinstance(x, Tensor) else x for x in self._settings]
        known: dict[str, Any] = {"attend_place": place, "settings": settings}
        known |= {_identifier("linear", name): _product(linear) for name, linear in _linears(layer).items()}
        lines = [f"R, T = {self._sources[0]}.shape[:2]"]
        values: dict[fx.Node, str] = {}
        sources = iter(self._sources)

        def text(value: Any) -> str:
            if isinstance(value, fx.Node):
                return values[value]
            if isinstance(value, (list, tuple)):
                return "[" + ", ".join(map(text, value)) + "]"
            if type(value) is int:
                return _size(value)
            if value is None or type(value) is bool:
                return repr(value)
            known[f"k{len(known)}"] = value
            return f"k{len(known) - 1}"

        for node in self._graph.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(sources)
            elif node.op == "get_attr":
                tensor = operator.attrgetter(node.target)(self._graph)
                values[node] = text(tensors.get(names.get(id(tensor), ""), tensor))
            elif node.op == "output":
                lines.append(f"return {text(node.args[0])}")
            else:
                values[node] = f"v_{node.name}"
                lines.append(f"v_{node.name} = {_call_text(node, text, known)}")
        body = "\n    ".join(lines)
        exec(f"def replay(buffers, args, kwargs):\n    {body}", known)
        return known["replay"]


def _call_text(node: fx.Node, text: Callable[[Any], str], known: dict[str, Any]) -> str:
    given = [text(x) for x in node.args]
    if node.target is torch.ops.memspan.linear.default:
        return f"{_identifier('linear', node.args[1])}({given[0]})"
    if node.target is torch.ops.memspan.attend.default:
        return f"buffers.attend(attend_place, {', '.join(given)}, *settings)"
    operation = cast(Any, node.target)  # one of torch's, or what takes one of several results
    known[_identifier("op", node.target)] = getattr(operation, "_op", operation)
    given += [f"{name}={text(value)}" for name, value in node.kwargs.items()]
    return f"{_identifier('op', node.target)}({', '.join(given)})"


def _identifier(kind: str, name: object) -> str:
    return kind + "_" + "".join(letter if letter.isalnum() else "_" for letter in str(name))


def _size(value: int) -> str:
    """A number of a trace with the batch's sizes by name."""
    for prime, name in ((_R, "R"), (_T, "T")):
        if value and value % prime == 0:
            return f"{name} * {_size(value // prime)}"
    return repr(value)


def _sizes_of(tensor: Tensor) -> list[int]:
    """The shape of an argument, seen with two rows of three tokens, in a trace."""
    sizes = list(tensor.shape)
    if sizes and sizes[0] == 2:
        sizes[0] = _R
    if len(sizes) > 1 and sizes[1] == 3:
        sizes[1] = _T
    return sizes


def _with_tensors(value: Any, source: str, found: dict[str, Tensor], given: Mapping[str, Tensor] | None) -> Any:
    """A layer's arguments; `found` gets every tensor in them by its source, or `given` ones take their place."""
    if isinstance(value, Tensor):
        if given is not None:
            return given[source]
        found[source] = value
        return value
    if isinstance(value, dict):
        return {name: _with_tensors(x, f"{source}[{name!r}]", found, given) for name, x in value.items()}
    if isinstance(value, tuple):
        return tuple(_with_tensors(x, f"{source}[{place}]", found, given) for place, x in enumerate(value))
    return value
