"""A plugin of vLLM: images of different K may share a step of its scheduler. Install it into the server's environment, and start the server
with VLLM_PLUGINS=dynamic_k, or without that variable, which loads every plugin.

vLLM 0.32.0 checks image_embeds, of different requests as well, against a shape in which every image has as many rows ("ifs"). An error
there ends the engine.
"""

import importlib
from typing import Annotated

import torch

CLASSES = [("llava", "LlavaImageEmbeddingInputs"), ("llava_next", "LlavaNextImageEmbeddingInputs")]


def register():
    from vllm.utils.tensor_schema import TensorShape

    shape = TensorShape("bn", "ifs", "hs", dynamic_dims={"ifs"})
    for module, name in CLASSES:
        inputs = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), name)
        inputs.__annotations__["data"] = Annotated[torch.Tensor | list[torch.Tensor], shape]
