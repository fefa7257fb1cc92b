"""
A tiny SigLIP with random weights, exported as published ones are, and what PyTorch says of it in float64.

    venv/bin/python test/exports/siglip.py --out test/fixtures/siglip [--seed 1] [--all]

`--all` writes the towers by further exporters and tools too.
"""

import argparse
import json
from pathlib import Path

import exporters
import numpy as np
import torch
from models import exact, randomise
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import SiglipConfig, SiglipModel

LENGTH, PAD, WORDS = 16, "</s>", "a what colour is the dog cat ball of red big left photo on in it".split()
TEXTS = ["what colour is the dog", "the BIG red ball", "a"]


class Vision(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.vision_model

    def forward(self, pixel_values):
        out = self.model(pixel_values=pixel_values)
        return out.last_hidden_state, out.pooler_output


class Text(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model.text_model

    def forward(self, input_ids):
        out = self.model(input_ids=input_ids)
        return out.last_hidden_state, out.pooler_output


def tokenizer(folder):
    """Words in lower case, one end token that pads too, as SigLIP has it."""
    vocabulary = {PAD: 0, "<unk>": 1, **{word: 2 + i for i, word in enumerate(WORDS)}}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.add_special_tokens([AddedToken(PAD, special=True), AddedToken("<unk>", special=True)])
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single=f"$A {PAD}", special_tokens=[(PAD, 0)])
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "SiglipTokenizer", "pad_token": PAD, "eos_token": PAD, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": LENGTH}, indent=1))
    return made


def padded(made, text, length=LENGTH):
    ids = made.encode(text).ids
    return torch.tensor([ids + [0] * (length - len(ids))])


def unit(x):
    return (x / x.norm(dim=-1, keepdim=True)).numpy()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--all", action="store_true")
    given = parser.parse_args()
    out = given.out
    (out / "onnx").mkdir(parents=True, exist_ok=True)
    shared = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "layer_norm_eps": 1e-6}
    config = SiglipConfig(
        vision_config={**shared, "intermediate_size": 72, "image_size": 28, "patch_size": 7},
        text_config={**shared, "intermediate_size": 64, "vocab_size": 2 + len(WORDS), "max_position_embeddings": LENGTH,
                     "projection_size": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 0},
    )
    config.vision_config.num_hidden_layers = 4
    config._attn_implementation = "eager"
    model = randomise(SiglipModel(config), given.seed)
    model.save_pretrained(out)
    made = tokenizer(out)

    pixels = torch.rand((1, 3, 28, 28), generator=torch.Generator().manual_seed(5)) * 2 - 1
    vision = exporters.Graph(Vision(model), {"pixel_values": pixels}, ["last_hidden_state", "pooler_output"], {"pixel_values": {0: "batch"}})
    ids = {"input_ids": padded(made, TEXTS[0]).repeat(2, 1)}
    text = exporters.Graph(Text(model), ids, ["last_hidden_state", "pooler_output"], {"input_ids": {0: "batch"}})
    free = exporters.Graph(Text(model), ids, text.outputs, {"input_ids": {0: "batch", 1: "length"}})
    forms = {"": exporters.torchscript(14), "_dynamo": exporters.dynamo(18)}
    if given.all:
        forms |= {"_ts17": exporters.torchscript(17), "_dynamo23": exporters.dynamo(23), "_dynamo24": exporters.dynamo(24)}
    for suffix, exporter in forms.items():
        exporter.write(vision, out / "onnx" / f"vision_model{suffix}.onnx")
        exporter.write(free if suffix else text, out / "onnx" / f"text_model{suffix}.onnx")
    if given.all:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        for tower, graph in {"vision_model": vision, "text_model": text}.items():
            plain = out / "onnx" / f"{tower}.onnx"
            exporters._runtime("EXTENDED")(plain, out / "onnx" / f"{tower}_ort.onnx", graph)
            exporters._runtime("ALL")(out / "onnx" / f"{tower}_dynamo.onnx", out / "onnx" / f"{tower}_dynamo_ort.onnx", graph)
            quantize_dynamic(str(plain), str(out / "onnx" / f"{tower}_quantized.onnx"), weight_type=QuantType.QUInt8)
            exporters._optimizer("vit", 1)(plain, out / "onnx" / f"{tower}_fused.onnx", graph)

    with torch.no_grad():
        e = exact(model)
        states = e.vision_model(pixel_values=pixels.double(), output_hidden_states=True)
        last = states.hidden_states[-1]
        head = e.vision_model.head
        h = e.vision_model.post_layernorm(last)
        _, attention = head.attention(head.probe, h, h, need_weights=True)
        # What the head makes of rows behind post_layernorm, each a sequence of its own.
        values = {
            "pixels": pixels.numpy(),
            "entering": states.hidden_states[-2][0].numpy(),
            "ending": last[0].numpy(),
            "embeddings": unit(torch.cat([head(h[:, i : i + 1]) for i in range(h.shape[1])])),
            "global": unit(states.pooler_output[0]),
            "probe": attention[0, 0].numpy(),
        }
        for i, sentence in enumerate(TEXTS):
            values[f"text.{i}"] = e.text_model(input_ids=padded(made, sentence)).pooler_output[0].numpy()
        # The same text without padding: another row.
        values["unpadded.0"] = e.text_model(input_ids=torch.tensor([made.encode(TEXTS[0]).ids])).pooler_output[0].numpy()
        for word in ["colour", "dog", "what", "ball"]:
            values[f"word.{word}"] = e.text_model(input_ids=padded(made, word)).pooler_output[0].numpy()
    save_file({name: np.ascontiguousarray(value, dtype=np.float32) for name, value in values.items()}, out / "expected.safetensors")
    (out / "expected.json").write_text(json.dumps({"texts": TEXTS, "length": LENGTH}, indent=1))


main()
