"""Building an ONNX graph: constants and nodes, each named by what it yields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper


class Nodes:
    """A graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._named = 0

    def const(self, value: Any, dtype: npt.DTypeLike = np.float32) -> str:
        """A constant."""
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, dtype, order="C"), name))
        return name

    def ints(self, *values: int) -> str:
        """A list of int64, as axes and shapes are."""
        return self.const(values, np.int64)

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self.many(op, 1, *inputs, **attributes)[0]

    def many(self, op: str, outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node and return the names of its outputs."""
        self._named += 1
        names = [f"{op.lower()}{self._named}_{at}" for at in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def either(self, condition: str, then: Callable[[], str], otherwise: Callable[[], str]) -> str:
        """What the one or the other function's nodes yield; both may read everything made so far."""
        branches = {}
        for name, make in (("then_branch", then), ("else_branch", otherwise)):
            outer, self.nodes = self.nodes, []
            result = make()
            output = helper.make_empty_tensor_value_info(result)
            branches[name] = helper.make_graph(self.nodes, name, [], [output])
            self.nodes = outer
        return self("If", condition, **branches)
