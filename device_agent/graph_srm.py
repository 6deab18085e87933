"""The SRMs' state after an item, as nodes of the device's ONNX graph; `device_agent.srm` is their reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
from onnx import TensorProto

from device_agent.din import decay_and_inputs
from device_agent.graph_nodes import Nodes
from device_agent.layer_norm import EPSILON
from device_agent.sasrec import SasrecTables

Floats = npt.NDArray[np.float32]


def gru4rec(g: Nodes, tensors: Mapping[str, Floats]) -> str:
    """(R, h) GRU4Rec's state after `items`."""
    h = tensors["srm.gru.weight_hh"].shape[1]
    x = g(
        "LayerNormalization",
        g("Gather", g.const(tensors["srm.item_in"]), g("Squeeze", "items", g.ints(1))),
        g.const(tensors["srm.norm.weight"]),
        g.const(tensors["srm.norm.bias"]),
        epsilon=EPSILON,
    )
    gates_in = g("Gemm", x, g.const(tensors["srm.gru.weight_ih"].T), g.const(tensors["srm.gru.bias_ih"]))
    gates_hidden = g("Gemm", "hidden", g.const(tensors["srm.gru.weight_hh"].T), g.const(tensors["srm.gru.bias_hh"]))
    sizes = g.ints(h, h, h)
    reset_in, update_in, new_in = g.many("Split", 3, gates_in, sizes, axis=1)
    reset_hidden, update_hidden, new_hidden = g.many("Split", 3, gates_hidden, sizes, axis=1)
    reset = g("Sigmoid", g("Add", reset_in, reset_hidden))
    update = g("Sigmoid", g("Add", update_in, update_hidden))
    new = g("Tanh", g("Add", new_in, g("Mul", reset, new_hidden)))
    return g("Add", new, g("Mul", update, g("Sub", "hidden", new)))


def din(g: Nodes, tensors: Mapping[str, Floats]) -> str:
    """(R, h) DIN's state after `items`, as in `device_agent.din`."""
    decay, inputs = decay_and_inputs(tensors)
    added = g("Gather", g.const(inputs), g("Squeeze", "items", g.ints(1)))
    return g("Add", g("Mul", "hidden", g.const(decay)), added)


def sasrec(g: Nodes, tensors: Mapping[str, Floats]) -> str:
    """(R, h) SASRec's state after `items`, from the ring with them in it, as in `device_agent.sasrec`."""
    tables = SasrecTables.of(tensors)
    window, h = tables.positions.shape
    every, size = g.ints(*range(window)), g.ints(window)
    ring = g("Where", g("Equal", every, g("Mod", "history_len", size)), "items", "history")
    known = g("Add", "history_len", g.ints(1))
    full = g("Cast", g("Greater", known, size), to=TensorProto.INT64)
    slots = g("Mod", g("Add", g("Mul", g("Mod", known, size), full), every), size)
    x = g("Gather", g.const(tables.items), g("GatherElements", ring, slots, axis=1))
    x = g("Add", x, g.const(tables.positions))
    ones, zeros = g.const(np.ones(h)), g.const(np.zeros(h))

    def standardised(x: str) -> str:
        return g("LayerNormalization", x, ones, zeros, epsilon=EPSILON)

    def linear(x: str, weight: Floats, bias: Floats) -> str:
        return g("Add", g("MatMul", x, g.const(weight)), g.const(bias))

    last = g("Sub", g("Min", known, size), g.ints(1))
    at = g("Unsqueeze", g("Cast", g("Equal", every, last), to=TensorProto.FLOAT), g.ints(1))  # (R, 1, W)
    for nth, block in enumerate(tables.blocks):
        y = standardised(x)
        asking, may = y, g.const(np.where(np.tri(window, dtype=np.bool_), 0, -np.inf))
        if nth == len(tables.blocks) - 1:  # only the last place is wanted
            asking, x = g("MatMul", at, y), g("MatMul", at, x)
            later = g("Greater", every, last)
            may = g("Unsqueeze", g("Where", later, g.const(-np.inf), g.const(0)), g.ints(1))
        scores = g("MatMul", linear(asking, block.pairs, block.pairs_bias), g("Transpose", y, perm=[0, 2, 1]))
        shares = g("Softmax", g("Add", scores, may), axis=2)
        x = g("Add", x, linear(g("MatMul", shares, y), block.value, block.value_bias))
        inner = g("Relu", linear(standardised(x), block.first, block.first_bias))
        x = g("Add", x, linear(inner, block.second, block.second_bias))
    weight, bias = (g.const(each) for each in tables.norm)
    return g("Squeeze", g("LayerNormalization", x, weight, bias, epsilon=EPSILON), g.ints(1))


SRM_NODES: Final[Mapping[str, Callable[[Nodes, Mapping[str, Floats]], str]]] = {
    "gru4rec": gru4rec,
    "sasrec": sasrec,
    "din": din,
}
"""By the manifest's ``srm``."""
