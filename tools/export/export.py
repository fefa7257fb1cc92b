#!/usr/bin/env python3
"""
Writes the folder that `PrunedVision`, `Llava` and `attach` open, from a LLaVA or a CLIP of Hugging Face.

    python export.py llava-hf/llava-1.5-7b-hf models/llava-1.5-7b-hf
    python export.py openai/clip-vit-large-patch14-336 models/clip-vit-large-patch14-336

The source is a folder as `save_pretrained` writes it, or an id of the hub. README.md beside this file has sizes and times.
"""

import argparse
import json
import shutil
from pathlib import Path

import torch
from graphs import clip_graphs, llava_graphs
from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel, LlavaForConditionalGeneration
from write import SUFFIX, write

# A protobuf message ends at 2 GiB; the graph itself needs a little of that.
LIMIT = 1_900_000_000


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="folder or id of a LLaVA or a CLIP")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--dtype", nargs="+", choices=list(SUFFIX), default=["fp32"], help="default: fp32")
    parser.add_argument(
        "--inline-limit",
        type=int,
        default=LIMIT,
        metavar="BYTES",
        help="weights above it lie beside their graph (default: 1.9 GB)",
    )
    options = parser.parse_args()
    torch.manual_seed(0)

    source = local(options.source)
    config = AutoConfig.from_pretrained(source)
    made = {"llava": llava, "clip": clip}.get(config.model_type)
    if made is None:
        raise SystemExit(f"{options.source}: got a model of type {config.model_type}, wanted llava or clip")
    (options.out / "onnx").mkdir(parents=True, exist_ok=True)
    graphs, files = made(source, config)
    outside = [
        name for graph in graphs for name in write(graph, options.out / "onnx", options.dtype, options.inline_limit)
    ]
    if outside:
        files["config.json"]["transformers.js_config"] = {"use_external_data_format": dict.fromkeys(outside, True)}
    tokenizer(source, options.out)
    for name, content in files.items():
        (options.out / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf-8")
    print(
        f"{options.out}: {', '.join(sorted(str(path.relative_to(options.out)) for path in options.out.rglob('*') if path.is_file()))}"
    )


def local(source):
    """The folder of a source; an id of the hub is downloaded."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(source, allow_patterns=["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]))


def llava(source, config):
    """Graphs and JSON files of a LLaVA."""
    layer, strategy = config.vision_feature_layer, config.vision_feature_select_strategy
    if (layer, strategy) != (-2, "default"):
        raise SystemExit(
            f"vision_feature_layer, vision_feature_select_strategy: got {layer}, {strategy}, wanted -2, default: DeSAP is defined there"
        )
    if config.vision_config.model_type != "clip_vision_model":
        raise SystemExit(f"vision_config.model_type: got {config.vision_config.model_type}, wanted clip_vision_model")
    model = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32).eval()
    token = getattr(config, "image_token_id", None) or config.image_token_index
    words = AutoTokenizer.from_pretrained(source)
    files = {
        # In full: Transformers.js does not know the defaults of transformers.
        "config.json": {**config.to_dict(), "image_token_index": token, "image_token_id": token},
        "generation_config.json": model.generation_config.to_dict(),
        "preprocessor_config.json": {**image_processor(source), "processor_class": "LlavaProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": words.convert_ids_to_tokens(token),
            "patch_size": config.vision_config.patch_size,
            "vision_feature_select_strategy": strategy,
            # Hugging Face counts the class token here and takes it off again; Transformers.js adds the number only.
            "num_additional_image_tokens": 0,
        },
    }
    return llava_graphs(model), files


def clip(source, config):
    """Graphs and JSON files of a CLIP."""
    model = CLIPModel.from_pretrained(source, dtype=torch.float32).eval()
    return clip_graphs(model), {
        "config.json": config.to_dict(),
        "preprocessor_config.json": {**image_processor(source), "processor_class": "CLIPProcessor"},
    }


def image_processor(source):
    """The settings of an image processor under the names that all versions read."""
    settings = AutoImageProcessor.from_pretrained(source).to_dict()
    name = settings["image_processor_type"].removesuffix("Fast").removesuffix("Pil")
    return {key: value for key, value in settings.items() if value is not None} | {"image_processor_type": name}


def tokenizer(source, out):
    """The tokenizer's files as they are, or as transformers writes them; the chat template where every reader finds it."""
    AutoTokenizer.from_pretrained(source).save_pretrained(out)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (source / name).exists() and (source / "tokenizer.json").exists():
            shutil.copyfile(source / name, out / name)
    path = out / "tokenizer_config.json"
    settings = json.loads(path.read_text("utf-8"))
    template = settings.get("chat_template") or template_beside(source)
    if template is not None:
        settings["chat_template"] = template
        path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", "utf-8")
        if isinstance(template, str):
            (out / "chat_template.jinja").write_text(template, "utf-8")


def template_beside(source):
    """A chat template in a file of its own: as text since transformers 4.51, as JSON before."""
    if (source / "chat_template.jinja").exists():
        return (source / "chat_template.jinja").read_text("utf-8")
    if (source / "chat_template.json").exists():
        return json.loads((source / "chat_template.json").read_text("utf-8"))["chat_template"]
    return None


if __name__ == "__main__":
    main()
