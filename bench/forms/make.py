"""The example models with their vision encoders in smaller arithmetic, as conversion scripts of Transformers.js make them: by ONNX Runtime's
own tools.

usage: python bench/forms/make.py <out> <model folder>...

Makes <out>/<name of the folder>/<form>, a copy of each folder with another `onnx/vision_encoder.onnx`; all else stays float32.
q8: dynamic, every operator that ONNX Runtime quantises so, the convolution among them: uint8.
int8: dynamic, matrix products alone: int8.
fp16: with float32 inputs and outputs.
Needs onnx and onnxruntime.
"""

import shutil
import sys
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

OPTIONS = {"EnableSubgraph": True, "MatMulConstBOnly": True}


def q8(source: Path, target: Path) -> None:
    quantize_dynamic(source, target, weight_type=QuantType.QUInt8, extra_options=OPTIONS)


def int8(source: Path, target: Path) -> None:
    kinds = ["MatMul", "Gemm"]
    quantize_dynamic(source, target, op_types_to_quantize=kinds, weight_type=QuantType.QInt8, extra_options=OPTIONS)


def fp16(source: Path, target: Path) -> None:
    onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), target)


out, *models = map(Path, sys.argv[1:])
for model in models:
    for form in (q8, int8, fp16):
        folder = out / model.name / form.__name__
        shutil.copytree(model, folder, dirs_exist_ok=True)
        form(model / "onnx" / "vision_encoder.onnx", folder / "onnx" / "vision_encoder.onnx")
        print(folder)
