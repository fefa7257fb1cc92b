"""
Exporters, and the tools that people put behind them. Each writes a file; `runs_like` says whether the file is what the model is.
"""

import contextlib
import importlib
import importlib.metadata
import inspect
import io
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import onnxruntime
import torch

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
onnxruntime.set_default_logger_severity(4)


def versions(*packages):
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)


class Broken(Exception):
    """A tool failed, or wrote a file that ONNX Runtime does not open or that computes something else."""


@contextlib.contextmanager
def quiet():
    """What tools print is not shown; what they raise is Broken."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        except Broken:
            raise
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}".splitlines()[0][:200]) from error


@dataclass
class Graph:
    """What is exported: a module, its inputs by name, the names of its outputs, and its free axes by input."""

    module: torch.nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: list[str]
    free: dict[str, dict[int, str]]


@dataclass(frozen=True)
class Exporter:
    form: str
    opset: int
    dynamo: bool = False
    options: tuple = ()

    @property
    def name(self):
        return "torch.onnx dynamo" if self.dynamo else "torch.onnx TorchScript"

    @property
    def versions(self):
        return versions("torch", "transformers")

    def write(self, graph: Graph, path: Path):
        module, args = graph.module.eval(), tuple(graph.inputs.values())
        shared = {
            "input_names": list(graph.inputs),
            "output_names": graph.outputs,
            "opset_version": self.opset,
            **dict(self.options),
        }
        if self.dynamo:
            shapes = tuple(
                {axis: torch.export.Dim.DYNAMIC for axis in graph.free.get(name, {})} for name in graph.inputs
            )
            takes = inspect.signature(module.forward).parameters.values()
            if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in takes):
                shapes = (shapes,)
            shared |= {"dynamic_shapes": shapes, "external_data": False}
        else:
            shared["dynamic_axes"] = graph.free
        with torch.no_grad(), quiet():
            torch.onnx.export(module, args, str(path), dynamo=self.dynamo, **shared)
        without_traces(path)
        runs_like(graph, path)


def torchscript(opset, form="", **options):
    return Exporter(form or f"opset {opset}", opset, False, tuple(options.items()))


def dynamo(opset, form="", **options):
    return Exporter(form or f"opset {opset}", opset, True, tuple(options.items()))


def without_traces(path):
    """Takes out where the exporter was when it wrote a node: half of a small file, and paths of this machine."""
    model = onnx.load(path)
    model.doc_string = ""
    for node in model.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in [*model.graph.value_info, *model.graph.input, *model.graph.output]:
        del value.metadata_props[:]
    onnx.save(model, path)


def run_file(path, inputs):
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        taken = {
            value.name: inputs[value.name].numpy().astype(np.float16)
            if value.type == "tensor(float16)"
            else inputs[value.name].numpy()
            for value in session.get_inputs()
        }
        return session.run(None, taken)
    except Exception as error:
        raise Broken(str(error).splitlines()[0]) from error


def runs_like(graph, path, tolerance=1e-4):
    """Raises Broken unless a file's first output is the module's."""
    with torch.no_grad():
        wanted = graph.module(*graph.inputs.values())
    wanted = (wanted[0] if isinstance(wanted, (tuple, list)) else wanted).numpy().astype(np.float64)
    got = run_file(path, graph.inputs)[0].astype(np.float64)
    error = np.abs(got.reshape(wanted.shape) - wanted).max() / np.abs(wanted).max()
    if not error <= tolerance:
        raise Broken(f"differs from PyTorch by {error:.1e}")


# Tools: each takes the path of a file and writes another. What a tool allows itself in rounding is its tolerance.


@dataclass(frozen=True)
class Tool:
    name: str
    form: str
    packages: tuple
    run: object
    tolerance: float = 1e-4

    @property
    def versions(self):
        return versions(*self.packages)

    def write(self, source: Path, path: Path, graph: Graph):
        with quiet():
            self.run(source, path, graph)
        runs_like(graph, path, self.tolerance)


def _onnxsim(source, path, graph):
    import onnxsim

    model, ok = onnxsim.simplify(onnx.load(source))
    if not ok:
        raise Broken("onnxsim says that its file is not the same")
    onnx.save(model, path)


def _onnxslim(source, path, graph):
    import onnxslim

    onnx.save(onnxslim.slim(onnx.load(source)), path)


def _runtime(level):
    def run(source, path, graph):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
        options.optimized_model_filepath = str(path)
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])

    return run


def _optimizer(kind, level):
    def run(source, path, graph):
        from onnxruntime.transformers import optimizer

        shape = {"num_heads": 0, "hidden_size": 0}
        model = optimizer.optimize_model(str(source), model_type=kind, opt_level=level, **shape)
        model.save_model_to_file(str(path))

    return run


def _float16(module, keep):
    def run(source, path, graph):
        convert = importlib.import_module(module).convert_float_to_float16
        onnx.save(convert(onnx.load(source), keep_io_types=keep), path)

    return run


def _dynamic8(kind, **options):
    def run(source, path, graph):
        from onnxruntime.quantization import QuantType, quantize_dynamic

        quantize_dynamic(str(source), str(path), weight_type=QuantType[kind], **options)

    return run


def _blocks4(source, path, graph):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=32, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    onnx.save(quantizer.model.model, path)


def _later_opset(source, path, graph):
    onnx.save(onnx.version_converter.convert_version(onnx.load(source), 21), path)


def _constant_nodes(source, path, graph):
    model = onnx.load(source)
    constants = [
        onnx.helper.make_node("Constant", [], [weight.name], value=weight) for weight in model.graph.initializer
    ]
    nodes = [*constants, *model.graph.node]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _weights_as_inputs(source, path, graph):
    model = onnx.load(source)
    for weight in model.graph.initializer:
        model.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    onnx.save(model, path)


def _half_weights(source, path, graph):
    """Weights stored as float16, each behind a Cast."""
    model = onnx.load(source)
    casts = []
    for weight in model.graph.initializer:
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) < 2:
            continue
        name, values = weight.name, onnx.numpy_helper.to_array(weight).astype(np.float16)
        weight.CopyFrom(onnx.numpy_helper.from_array(values, f"{name}.half"))
        casts.append(onnx.helper.make_node("Cast", [f"{name}.half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, path)


def _without_names(source, path, graph):
    """Nodes without names, values with numbers; only the graph's own inputs and outputs keep theirs."""
    model = onnx.load(source)
    own = {value.name for value in (*model.graph.input, *model.graph.output)}
    numbers = {"": ""}
    rename = lambda name: name if name in own else numbers.setdefault(name, str(len(numbers)))
    for node in model.graph.node:
        node.name = ""
        node.input[:], node.output[:] = map(rename, node.input), map(rename, node.output)
    for weight in model.graph.initializer:
        weight.name = rename(weight.name)
    del model.graph.value_info[:]
    onnx.save(model, path)


def _external(source, path, graph):
    onnx.save(onnx.load(source), path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=256)


ONNXSIM = Tool("onnxsim", "", ("onnxsim",), _onnxsim)
ONNXSLIM = Tool("onnxslim", "", ("onnxslim",), _onnxslim)
RUNTIME_LEVELS = [
    Tool("ONNX Runtime, saved", level.lower(), ("onnxruntime",), _runtime(level))
    for level in ("BASIC", "EXTENDED", "ALL")
]
OPTIMIZERS = [
    Tool("onnxruntime.transformers optimizer", f"{kind}, level {level}", ("onnxruntime",), _optimizer(kind, level))
    for kind, level in (("clip", 0), ("clip", 1), ("vit", 0), ("bert", 2))
]
RUNTIME_HALF, CONVERTER_HALF = "onnxruntime.transformers.float16", "onnxconverter_common.float16"
REWRITES = [
    Tool("onnx", "converted to opset 21", ("onnx",), _later_opset),
    Tool("onnx", "weights in Constant nodes", ("onnx",), _constant_nodes),
    Tool("onnx", "weights as inputs too", ("onnx",), _weights_as_inputs),
    Tool("onnx", "no names", ("onnx",), _without_names),
    Tool("onnx", "external data", ("onnx",), _external),
]
EXACT = [ONNXSIM, ONNXSLIM, *RUNTIME_LEVELS, *OPTIMIZERS, *REWRITES]
HALF_WEIGHTS = Tool("onnx", "float16 weights behind Cast", ("onnx",), _half_weights, 2e-2)
HALF = [
    HALF_WEIGHTS,
    Tool("float16", "onnxruntime.transformers, io kept", ("onnxruntime",), _float16(RUNTIME_HALF, True), 2e-2),
    Tool("float16", "onnxruntime.transformers, io float16", ("onnxruntime",), _float16(RUNTIME_HALF, False), 2e-2),
    Tool("float16", "onnxconverter-common, io kept", ("onnxconverter-common",), _float16(CONVERTER_HALF, True), 2e-2),
]
BYTES = [
    Tool("q8 dynamic", "unsigned", ("onnxruntime",), _dynamic8("QUInt8"), 0.5),
    Tool("q8 dynamic", "signed, per channel", ("onnxruntime",), _dynamic8("QInt8", per_channel=True), 0.5),
]
BLOCKS = [Tool("q4 MatMulNBits", "symmetric, accuracy 4", ("onnxruntime",), _blocks4, 0.8)]
