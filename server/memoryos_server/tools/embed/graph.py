"""Builds the local model's file: from the published weights to a small int8 graph.

Runs once per installation, as a process of its own (`python -m memoryos_server.tools.embed.graph FILE`), because it
takes some 500 MiB for some seconds that the server would not get back.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.quant_utils import QuantType
from onnxruntime.quantization.quantize import quantize_dynamic

from memoryos_server.tools.embed.weights import (
    PACKAGE,
    RECIPE,
    TOKENIZER_SHA256,
    WEIGHTS_SHA256,
    WeightsError,
    check,
    locate,
    read_safetensors,
    sha256,
)

LAYERS, WIDTH, HEADS = 6, 384, 12
EPSILON = 1e-12


class _Graph:
    """Nodes and constants, in the order they are made."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def linear(self, x: str, weight: NDArray[np.float32], bias: NDArray[np.float32], output: str) -> str:
        product = self.add("MatMul", [x, self.constant(f"{output}.w", weight.T)], f"{output}.product")
        return self.add("Add", [product, self.constant(f"{output}.b", bias)], output)

    def norm(self, x: str, tensors: dict[str, NDArray[np.float32]], prefix: str, output: str) -> str:
        scale = self.constant(f"{output}.scale", tensors[f"{prefix}.weight"])
        bias = self.constant(f"{output}.bias", tensors[f"{prefix}.bias"])
        return self.add("LayerNormalization", [x, scale, bias], output, axis=-1, epsilon=EPSILON)


def graph(tensors: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    """The float32 graph: token ids of one text (1 x L) -> its unit vector (1 x 384).

    There is no attention mask: texts are run one at a time, see `minilm`. Mean pooling and the unit length are inside.
    """
    g = _Graph()
    words = g.constant("words", tensors["embeddings.word_embeddings.weight"])
    # The segment is always 0, so its embedding joins the positions'.
    positions = tensors["embeddings.position_embeddings.weight"] + tensors["embeddings.token_type_embeddings.weight"][0]
    x = g.add("Gather", [words, "ids"], "word")
    shape = g.add("Shape", ["ids"], "shape", start=1, end=2)
    zero, axis = g.constant("zero", np.array([0], np.int64)), g.constant("axis", np.array([0], np.int64))
    place = g.add("Slice", [g.constant("positions", positions), zero, shape, axis], "place")
    x = g.add("Add", [x, place], "embedded")
    x = g.norm(x, tensors, "embeddings.LayerNorm", "embedding")
    split = g.constant("heads", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
    joined = g.constant("joined", np.array([0, 0, WIDTH], np.int64))
    for n in range(LAYERS):
        x = _layer(g, tensors, n, x, split, joined)
    one = g.constant("one", np.array([1], np.int64))
    mean = g.add("ReduceMean", [x, one], "mean", keepdims=0)
    g.add("LpNormalization", [mean], "vector", axis=-1, p=2)
    body = helper.make_graph(
        g.nodes,
        "minilm",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, [1, "length"])],
        [helper.make_tensor_value_info("vector", TensorProto.FLOAT, [1, WIDTH])],
        g.constants,
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def _layer(g: _Graph, tensors: dict[str, NDArray[np.float32]], n: int, x: str, split: str, joined: str) -> str:
    p, o = f"encoder.layer.{n}", f"l{n}"
    parts = {}
    for part, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
        weight, bias = tensors[f"{p}.attention.self.{part}.weight"], tensors[f"{p}.attention.self.{part}.bias"]
        if part == "query":  # the scale of the dot product, folded in
            weight, bias = weight / math.sqrt(WIDTH / HEADS), bias / math.sqrt(WIDTH / HEADS)
        y = g.linear(x, weight.astype(np.float32), bias.astype(np.float32), f"{o}.{part}")
        y = g.add("Reshape", [y, split], f"{o}.{part}.heads")
        parts[part] = g.add("Transpose", [y], f"{o}.{part}.turned", perm=order)
    y = g.add("Softmax", [g.add("MatMul", [parts["query"], parts["key"]], f"{o}.scores")], f"{o}.attention", axis=-1)
    y = g.add("MatMul", [y, parts["value"]], f"{o}.mixed")
    y = g.add("Transpose", [y], f"{o}.back", perm=[0, 2, 1, 3])
    y = g.add("Reshape", [y, joined], f"{o}.context")
    prefix = f"{p}.attention.output"
    y = g.linear(y, tensors[f"{prefix}.dense.weight"], tensors[f"{prefix}.dense.bias"], f"{o}.out")
    x = g.norm(g.add("Add", [x, y], f"{o}.sum1"), tensors, f"{prefix}.LayerNorm", f"{o}.norm1")
    y = g.linear(x, tensors[f"{p}.intermediate.dense.weight"], tensors[f"{p}.intermediate.dense.bias"], f"{o}.up")
    # GELU by the error function, in the shape that the runtime knows how to fuse.
    root, unit, half = (g.constant(f"{o}.{v:.2}", np.array(v, np.float32)) for v in (math.sqrt(2), 1.0, 0.5))
    erf = g.add("Erf", [g.add("Div", [y, root], f"{o}.div")], f"{o}.erf")
    y = g.add("Mul", [g.add("Mul", [y, g.add("Add", [erf, unit], f"{o}.plus")], f"{o}.times"), half], f"{o}.gelu")
    y = g.linear(y, tensors[f"{p}.output.dense.weight"], tensors[f"{p}.output.dense.bias"], f"{o}.down")
    return g.norm(g.add("Add", [x, y], f"{o}.sum2"), tensors, f"{p}.output.LayerNorm", f"{o}.norm2")


def build(target: Path) -> None:
    """Makes `target`, the int8 model, and beside it `<name>.json` with its hash. Atomic; nothing else is left behind.

    Raises:
        WeightsError: The weights are missing or not the expected ones.
    """
    source = locate()
    if source is None:
        raise WeightsError(f"the package {PACKAGE.replace('_', '-')} is not installed")
    check(source / "model.safetensors", WEIGHTS_SHA256)
    check(source / "tokenizer.json", TOKENIZER_SHA256)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".building-", dir=target.parent) as scratch:
        whole, small = Path(scratch) / "float32.onnx", Path(scratch) / "int8.onnx"
        onnx.save(graph(read_safetensors(source / "model.safetensors")), whole)
        # Without per-channel scales and the reduced range, cosines to the float model fall from 0.99 to 0.90.
        quantize_dynamic(whole, small, per_channel=True, reduce_range=True, weight_type=QuantType.QInt8)
        whole.unlink()
        note = Path(scratch) / "note.json"
        note.write_text(json.dumps({"sha256": sha256(small), "weights_sha256": WEIGHTS_SHA256, "recipe": RECIPE}))
        os.replace(note, target.with_suffix(".json"))
        os.replace(small, target)


def main(arguments: Sequence[str]) -> int:
    """Builds the model at the path given; prints one line and gives 1 if it cannot."""
    logging.disable()  # the quantiser advises a preparation that these graphs do not need
    try:
        build(Path(arguments[0]))
    except (WeightsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
