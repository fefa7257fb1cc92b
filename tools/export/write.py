"""Writes graphs: float32 by torch.onnx, q8 and q4 by ONNX Runtime's quantisers; large weights lie beside their graph."""

import contextlib
import inspect
import io
import logging
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from graphs import Graph
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

logging.disable(logging.INFO)

# The first that has 4-bit numbers; every ONNX Runtime that the package takes reads it.
OPSET = 21
SUFFIX = {"fp32": "", "q8": "_quantized", "q4": "_q4"}
BLOCK = 32


def write(graph: Graph, folder: Path, dtypes, limit):
    """All precisions of one graph. Weights above `limit` bytes lie beside it; returns the names of such files."""
    start = time.time()
    plain = folder / f"{graph.name}.onnx"
    export(graph, plain, graph.bytes > limit)
    error = difference(graph, plain)
    if not error < 1e-3:
        raise SystemExit(f"{plain}: differs from PyTorch by {error:.1e} of its largest value; nothing to rely on")
    report(plain, start, error)
    for dtype in dtypes:
        if dtype == "fp32":
            continue
        start = time.time()
        path = folder / f"{graph.name}{SUFFIX[dtype]}.onnx"
        {"q8": bytes8, "q4": blocks4}[dtype](plain, path, graph.bytes > limit)
        report(path, start, difference(graph, path))
    if "fp32" not in dtypes:
        plain.unlink()
        data_of(plain).unlink(missing_ok=True)
    paths = [folder / f"{graph.name}{SUFFIX[dtype]}.onnx" for dtype in dtypes]
    return [path.name for path in paths if data_of(path).exists()]


def data_of(path: Path) -> Path:
    """Where Transformers.js looks for the weights of a graph."""
    return path.with_name(f"{path.name}_data")


def moved(model, path: Path, written: Path):
    """Gives a file of weights the name where Transformers.js looks for it; nothing is read into memory."""
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data_of(path).name
    written.rename(data_of(path))
    onnx.save(model, path)


def export(graph: Graph, path: Path, outside):
    shapes = tuple({axis: torch.export.Dim.DYNAMIC for axis in graph.free.get(name, {})} for name in graph.inputs)
    kinds = [parameter.kind for parameter in inspect.signature(graph.module.forward).parameters.values()]
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        fixed = kinds.index(inspect.Parameter.VAR_POSITIONAL)
        shapes = (*shapes[:fixed], shapes[fixed:])
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            opset_version=OPSET,
            input_names=list(graph.inputs),
            output_names=graph.outputs,
            dynamic_shapes=shapes,
            verbose=False,
        )
    program.save(path, external_data=outside)
    model = onnx.load(path, load_external_data=False)
    tidy(model, graph)
    if outside:
        moved(model, path, path.with_name(f"{path.name}.data"))
    else:
        onnx.save(model, path)


def tidy(model, graph):
    """Free axes get names that say what they are (the exporter numbers them); traces of the exporter go."""
    for value in model.graph.input:
        for axis, name in graph.free.get(value.name, {}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]


def bytes8(source, path, outside):
    """Products with weights of 8 bits and activations that are quantised as they come, and the embedding's rows."""
    quantize_dynamic(
        source,
        path,
        weight_type=QuantType.QUInt8,
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        use_external_data_format=outside,
    )
    if outside:
        moved(onnx.load(path, load_external_data=False), path, path.with_name(f"{path.name}.data"))


def blocks4(source, path, outside):
    """Weights of 4 bits in blocks of 32, symmetric; activations stay float32."""
    quantizer = MatMulNBitsQuantizer(
        onnx.load(source),
        block_size=BLOCK,
        is_symmetric=True,
        op_types_to_quantize=("MatMul", "Gather"),
        quant_axes=(("MatMul", 0), ("Gather", 1)),
    )
    quantizer.process()
    data_of(path).unlink(missing_ok=True)
    onnx.save(
        quantizer.model.model,
        path,
        save_as_external_data=outside,
        all_tensors_to_one_file=True,
        location=data_of(path).name,
    )


def difference(graph: Graph, path: Path):
    """Between the outputs of a file and of PyTorch, relative to the largest value."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    got = session.run(None, {name: value.numpy() for name, value in graph.inputs.items() if name in taken})
    with torch.no_grad():
        wanted = graph.module(*graph.inputs.values())
    pairs = zip(got, wanted if isinstance(wanted, tuple) else (wanted,), strict=True)
    return max(float(np.abs(a - b.numpy()).max() / np.abs(b.numpy()).max()) for a, b in pairs)


def report(path: Path, start, error):
    size = path.stat().st_size + (data_of(path).stat().st_size if data_of(path).exists() else 0)
    print(
        f"{path.name}: {size / 1e6:.1f} MB, {time.time() - start:.0f} s, differs from PyTorch by {error:.1e}",
        flush=True,
    )
