"""Towers that are nearly CLIP's: read right or refused with the reason, never taken for what they are not."""

import torch
from exporters import Exporter, Graph, dynamo, torchscript
from hugging_face import Vision, text_inputs
from models import VOCABULARY, clip, clip_tower, image, randomise, save_tokenizer
from torch import nn
from transformers import (
    ChineseCLIPConfig,
    ChineseCLIPModel,
    ChineseCLIPTextConfig,
    ChineseCLIPVisionConfig,
    CLIPForImageClassification,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
)

SIZE = 32


class OddTower(nn.Module):
    """CLIP's vision tower with one thing changed, by `odd`."""

    def __init__(self, model, odd, seed):
        super().__init__()
        self.tower, self.projection, self.odd = model.vision_model, model.visual_projection, odd
        width = model.config.vision_config.hidden_size
        if odd == "registers":
            self.registers = nn.Parameter(torch.zeros(4, width))
        if odd in ("probe first", "projection with bias"):
            self.probe = nn.Linear(width, 10 if odd == "probe first" else 20, bias=odd != "probe first")
        randomise(self, seed)

    def forward(self, pixel_values):
        states = self.tower.embeddings(pixel_values)
        batch = len(states)
        if self.odd == "registers":
            states = torch.cat([states[:, :1], self.registers.expand(batch, -1, -1), states[:, 1:]], 1)
        elif self.odd == "class token last":
            states = torch.cat([states[:, 1:], states[:, :1]], 1)
        elif self.odd == "patches reversed":
            states = torch.cat([states[:, :1], states[:, 1:].flip(1)], 1)
        states = self.tower.encoder(inputs_embeds=self.tower.pre_layrnorm(states)).last_hidden_state
        row = {"class token last": -1, "row 1": 1}.get(self.odd, 0)
        read = states[:, 1:].mean(1) if self.odd == "mean of patches" else states[:, row]
        read = self.tower.post_layernorm(read)
        if self.odd == "projection with bias":
            return self.probe(read)
        if self.odd == "two layers":
            return self.projection(torch.tanh(read @ torch.eye(read.shape[-1]) * 2) + read)
        embeds = self.projection(read)
        if self.odd == "tanh":
            return torch.tanh(3 * embeds + 1)
        if self.odd == "probe first":
            return self.probe(read), embeds
        return embeds


ODD = (
    "registers",
    "class token last",
    "patches reversed",
    "row 1",
    "mean of patches",
    "tanh",
    "probe first",
    "projection with bias",
    "two layers",
)


class First(nn.Module):
    """One output of a model of Hugging Face."""

    def __init__(self, model, output, inputs=("pixel_values",)):
        super().__init__()
        self.model, self.output, self.inputs = model, output, inputs

    def forward(self, *args):
        return getattr(self.model(**dict(zip(self.inputs, args))), self.output)


def short(name, exporter: Exporter):
    return f"odd_{name.replace(' ', '_')}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}"


def vision_graph(module):
    names = ["first", "second"] if getattr(module, "odd", "") == "probe first" else ["image_embeds"]
    return Graph(module, {"pixel_values": image(SIZE, 7, 2)}, names, {"pixel_values": {0: "batch"}})


def cases(suite, seed):
    tower = clip_tower(clip(seed), seed, SIZE)
    anything = tower.fields(suite.expect("odd", {"pixels": tower.pixels.numpy()}))
    refuse_head = [("", "refuse-head", anything)]
    for odd in ODD:
        for exporter in (torchscript(17), dynamo(18)):
            suite.export(
                short(odd, exporter),
                vision_graph(OddTower(clip(seed), odd, seed)),
                exporter,
                f"CLIP vision, {odd}",
                refuse_head,
            )
    for name, module in relatives(seed).items():
        for exporter in (torchscript(17), dynamo(18)):
            suite.export(short(name, exporter), vision_graph(module), exporter, name, refuse_head)
    siglip_text(suite, seed)
    chinese(suite, seed)


def relatives(seed):
    """Towers of other models: no projection, no class token, another read-out."""
    shared = {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 72,
        "image_size": SIZE,
        "patch_size": 8,
    }
    models = {
        "CLIPVisionModel": First(CLIPVisionModel(clip(seed).config.vision_config), "pooler_output"),
        "CLIPForImageClassification": First(CLIPForImageClassification(clip(seed).config), "logits"),
        "SigLIP vision": First(SiglipModel(siglip(shared)).vision_model, "pooler_output"),
        "DINOv2": First(Dinov2Model(Dinov2Config(**shared)), "pooler_output"),
        "ViT classifier": First(ViTForImageClassification(ViTConfig(**shared)), "logits"),
    }
    return {name: randomise(module, seed) for name, module in models.items()}


def siglip(shared):
    text = {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 72,
        "projection_size": 36,
    }
    return SiglipConfig(
        vision_config=SiglipVisionConfig(**shared).to_dict(),
        text_config=SiglipTextConfig(vocab_size=len(VOCABULARY), max_position_embeddings=64, **text).to_dict(),
    )


def siglip_text(suite, seed):
    """Bidirectional, made for texts padded to its context, last row read out, projection with a bias: no CLIP text."""
    save_tokenizer(suite.folder / "t64", 64)
    shared = {
        "hidden_size": 36,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 72,
        "image_size": SIZE,
        "patch_size": 8,
    }
    model = randomise(SiglipModel(siglip(shared)), seed)
    fields = {"tokenizer": "t64", "expected": suite.expect("odd_none", {"none": [0.0]}, {"texts": "[]"})}
    for form, free, length in (("free length", True, 9), ("fixed length", False, 64)):
        for exporter in (torchscript(17), dynamo(18)):
            inputs = text_inputs(("input_ids",), length=length, batch=2 if free else 1)
            axes = {"input_ids": {0: "batch", 1: "sequence"}} if free else {}
            graph = Graph(First(model.text_model, "pooler_output", ("input_ids",)), inputs, ["text_embeds"], axes)
            suite.export(
                short(f"siglip text {form}", exporter),
                graph,
                exporter,
                f"SigLIP text, {form}",
                [("", "refuse-text", fields)],
            )


class ChineseWhole(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, pixel_values, attention_mask):
        output = self.model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask)
        return output.text_embeds, output.image_embeds


def chinese(suite, seed):
    """Chinese-CLIP: CLIP's vision tower beside a BERT of the same width; the head is the tower's, the text is no CLIP text."""
    tokenizer = "t77"
    save_tokenizer(suite.folder / tokenizer, 77)
    shared = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 72}
    config = ChineseCLIPConfig(
        vision_config=ChineseCLIPVisionConfig(image_size=SIZE, patch_size=8, projection_dim=20, **shared).to_dict(),
        text_config=ChineseCLIPTextConfig(vocab_size=len(VOCABULARY), max_position_embeddings=77, **shared).to_dict(),
        projection_dim=20,
    )
    model = randomise(ChineseCLIPModel(config), seed)
    tower = clip_tower(model, seed, SIZE)
    head = tower.fields(suite.expect("odd_chinese", tower.values(seed)))
    text = {"tokenizer": tokenizer, "expected": "expected/odd_none.safetensors"}
    made = text_inputs(("input_ids", "attention_mask"))
    feeds = {
        "input_ids": made["input_ids"],
        "pixel_values": image(SIZE, 3, 2),
        "attention_mask": made["attention_mask"],
    }
    free = {
        "input_ids": {0: "texts", 1: "sequence"},
        "pixel_values": {0: "images"},
        "attention_mask": {0: "texts", 1: "sequence"},
    }
    for exporter in (torchscript(17), dynamo(18)):
        graph = Graph(ChineseWhole(model), feeds, ["text_embeds", "image_embeds"], free)
        suite.export(
            short("chinese", exporter),
            graph,
            exporter,
            "whole Chinese-CLIP, one width",
            [("", "head", head), ("_text", "refuse-text", text)],
        )
