#!/usr/bin/env python3
"""
What make.py makes, by optimum's `main_export`: whole CLIPs, of equal and different widths, and each tower alone.

    python -m venv venv-optimum && venv-optimum/bin/pip install -r test/exports/requirements-optimum.txt
    venv-optimum/bin/python test/exports/optimum_make.py --out exports-out-optimum [--seed 12]

The same environment runs `make.py --groups hugging_face llava`, for the attention and the masks of transformers 4.
"""

import argparse
import shutil

from exporters import quiet, versions, without_traces
from models import clip, clip_tower, save_tokenizer, text_rows
from optimum.exporters.onnx import export as onnx_export
from optimum.exporters.onnx import main_export
from optimum.exporters.onnx.model_configs import CLIPTextWithProjectionOnnxConfig, CLIPVisionModelOnnxConfig
from suite import Suite
from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPVisionModelWithProjection

VERSIONS = versions("optimum-onnx", "transformers", "torch")


def export(suite, name, model, task, opset, form, cases):
    """One `main_export` of a model as it is saved."""
    folder = suite.folder / "saved" / name

    def write(path):
        model.save_pretrained(folder)
        save_tokenizer(folder, 77)
        CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
        with quiet():
            main_export(
                str(folder), folder / "onnx", task=task, opset=opset, do_validation=False, library_name="transformers"
            )
        shutil.move(folder / "onnx" / "model.onnx", path)
        without_traces(path)

    path = suite.write(name, write)
    if path is None:
        return
    for suffix, kind, fields in cases:
        suite.add(
            name + suffix,
            kind,
            path,
            exporter="optimum main_export",
            versions=VERSIONS,
            form=f"{form}, {task}, opset {opset or 'default'}",
            **fields,
        )


class VisionConfig(CLIPVisionModelOnnxConfig):
    """optimum has none with the projection; this is how the scripts for Transformers.js describe it."""

    @property
    def outputs(self):
        return {"image_embeds": {0: "batch_size"}, "last_hidden_state": {0: "batch_size"}}


def towers(suite, model, head, text):
    """Each tower with its projection, in a file of its own."""
    vision = CLIPVisionModelWithProjection(model.config.vision_config)
    vision.vision_model, vision.visual_projection = model.vision_model, model.visual_projection
    words = CLIPTextModelWithProjection(model.config.text_config)
    words.text_model, words.text_projection = model.text_model, model.text_projection
    for name, tower, config, kind, fields in (
        ("vision", vision, VisionConfig, "head", {**head, "dynamic": True}),
        ("text", words, CLIPTextWithProjectionOnnxConfig, "text", text),
    ):
        for opset in (14, 17, 18):

            def write(path, tower=tower, config=config, opset=opset):
                with quiet():
                    onnx_export(tower, config(tower.config, task="feature-extraction"), path, opset=opset)
                without_traces(path)

            path = suite.write(f"{name}_{opset}", write)
            if path is not None:
                suite.add(
                    f"{name}_{opset}",
                    kind,
                    path,
                    exporter="optimum export",
                    versions=VERSIONS,
                    form=f"CLIP {name} with projection, opset {opset}",
                    **fields,
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--seed", type=int, default=12)
    options = parser.parse_args()
    suite = Suite(options.out)
    tokenizer = save_tokenizer(suite.folder / "t77", 77)
    for widths, shape in (
        ("same", {"vision": 36, "text": 36, "text_heads": 3}),
        ("differ", {"vision": 36, "text": 24}),
    ):
        model = clip(options.seed, **shape)
        tower = clip_tower(model, options.seed, 32)
        head = tower.fields(suite.expect(f"whole_{widths}", tower.values(options.seed)))
        text = {"tokenizer": "t77", "expected": suite.expect(f"whole_{widths}_text", *text_rows(model, tokenizer))}
        for task in ("feature-extraction", "zero-shot-image-classification"):
            for opset in (None, 14, 18):
                short = f"whole_{widths}_{task.split('-')[0]}_{opset or 'default'}"
                export(
                    suite,
                    short,
                    model,
                    task,
                    opset,
                    f"whole CLIP, widths {widths}",
                    [("", "head", head), ("_text", "text", text)],
                )
    towers(suite, model, head, text)
    suite.close()


if __name__ == "__main__":
    main()
