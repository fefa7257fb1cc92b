"""Writes external/: a real export with its weights beside it, as the onnx package writes them. Run in this folder; needs onnx."""
import os

import onnx

model = onnx.load("../../fixtures/exports/models/vision_ts17_onnxsim.onnx")
weights = "external/weights.bin"
if os.path.exists(weights):
    os.remove(weights)
onnx.save_model(model, "external/vision.onnx", save_as_external_data=True, location="weights.bin", size_threshold=256)
