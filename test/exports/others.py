"""CLIP by other libraries: open_clip, timm, OpenAI's own module (clip-anytorch)."""

import importlib.util
import json

import numpy as np
import torch
from exporters import ONNXSIM, ONNXSLIM, RUNTIME_LEVELS, Exporter, Graph, dynamo, torchscript, versions
from models import TEXTS, VOCABULARY, Tower, exact, image, last_input, randomise, save_tokenizer
from torch import nn

SIZE, WIDTH, HEADS = 32, 36, 3
TOOLS = [(ONNXSIM, None), (ONNXSLIM, None), (RUNTIME_LEVELS[1], None)]


class Encode(nn.Module):
    """A method of a model as its forward."""

    def __init__(self, model, method):
        super().__init__()
        self.model, self.method = model, method

    def forward(self, values):
        return getattr(self.model, self.method)(values)


def named(exporter: Exporter, library):
    """The same exporter; the table says which library the model is of."""

    class Named(Exporter):
        versions = property(lambda self: versions("torch", *library))

    return Named(exporter.form, exporter.opset, exporter.dynamo, exporter.options)


def packed(block, projection, post, eps=1e-5):
    """The head of a block with nn.MultiheadAttention."""
    weights = {}
    for name, weight, bias in zip("qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)):
        weights |= {f"{name}.weight": weight, f"{name}.bias": bias}
    weights |= {"ln1.weight": block.ln_1.weight, "ln1.bias": block.ln_1.bias}
    weights |= {"out.weight": block.attn.out_proj.weight, "out.bias": block.attn.out_proj.bias}
    weights |= {"post_ln.weight": post.weight, "post_ln.bias": post.bias, "visual_projection.weight": projection.T}
    return weights


def pixels_graph(module, batch, free):
    return Graph(
        module,
        {"pixel_values": image(SIZE, 7, batch)},
        ["image_embeds"],
        {"pixel_values": {0: "batch"}} if free else {},
    )


def ids_graph(module, free):
    ids = torch.randint(5, 500, (2 if free else 1, 77), generator=torch.Generator().manual_seed(5))
    ids[:, 0], ids[:, -1] = len(VOCABULARY) - 2, len(VOCABULARY) - 1
    return Graph(module, {"input_ids": ids}, ["text_embeds"], {"input_ids": {0: "batch"}} if free else {})


def rows_of(tokenizer, rows):
    values = {}
    for i, text in enumerate(TEXTS):
        ids = tokenizer.encode(text).ids
        padded = torch.zeros(1, 77, dtype=torch.int64)
        padded[0, : len(ids)] = torch.tensor(ids)
        with torch.no_grad():
            values |= {f"ids.{i}": np.array(ids), f"rows.{i}": rows(padded)[0, : len(ids)].numpy()}
    return values, {"texts": json.dumps(TEXTS)}


def short(name, exporter, suffix=""):
    return f"{name}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}{suffix}"


def open_clip_cases(suite, seed):
    import open_clip

    library = ("open_clip_torch", "timm")
    tokenizer = save_tokenizer(suite.folder / "t77", 77)
    for form, quick, options in (
        ("quick_gelu", True, {}),
        ("gelu", False, {}),
        ("average pool", False, {"pool_type": "avg"}),
        ("layer scale", False, {"ls_init_value": 0.5}),
    ):
        model = open_clip.CLIP(
            embed_dim=24,
            vision_cfg={
                "image_size": SIZE,
                "patch_size": 8,
                "width": WIDTH,
                "layers": 2,
                "head_width": WIDTH // HEADS,
                **options,
            },
            text_cfg={"context_length": 77, "vocab_size": len(VOCABULARY), "width": 32, "heads": 2, "layers": 2},
            quick_gelu=quick,
        )
        randomise(model, seed)
        visual = model.visual
        pixels = image(SIZE, seed)
        blocks = exact(visual)
        hidden = last_input(blocks, blocks.transformer.resblocks[-1], pixels.double())
        tower = Tower(
            packed(visual.transformer.resblocks[-1], visual.proj, visual.ln_post), HEADS, 1e-5, pixels, hidden
        )
        stem = f"openclip_{form.replace(' ', '_')}"
        # The decoupled attention ends with the output projection (eq. 2): a layer scale behind it is no part of a head.
        right = "pool_type" not in options
        expected = suite.expect(stem, tower.values(seed) if right else {"pixels": pixels.numpy()})
        case = [("", "head" if right else "refuse-head", tower.fields(expected, dynamic=right))]
        fixed = [("", "head", tower.fields(expected))]
        for exporter in (torchscript(14), torchscript(17), dynamo(18), dynamo(23)):
            tools = TOOLS if quick and exporter.opset in (17, 18) else []
            suite.export(
                short(stem, exporter),
                pixels_graph(Encode(model, "encode_image"), 2, True),
                named(exporter, library),
                f"open_clip vision, {form}",
                case,
                tools,
            )
        if not right:
            continue
        for exporter in (torchscript(17, "opset 17, batch 1"), dynamo(18, "opset 18, batch 1")):
            suite.export(
                short(stem, exporter, "_fixed"),
                pixels_graph(Encode(model, "encode_image"), 1, False),
                named(exporter, library),
                f"open_clip vision, {form}",
                fixed,
                TOOLS[:1],
            )
        text = exact(model)
        rows = lambda ids: (
            text.ln_final(
                text.transformer(text.token_embedding(ids) + text.positional_embedding, attn_mask=text.attn_mask)
            )
            @ text.text_projection
        )
        fields = {"tokenizer": "t77", "expected": suite.expect(f"{stem}_text", *rows_of(tokenizer, rows))}
        for exporter in (torchscript(14), torchscript(17), dynamo(18), dynamo(23)):
            for free in (True, False):
                suffix = "" if free else "_fixed"
                form_of = (
                    named(exporter, library)
                    if free
                    else named(type(exporter)(f"{exporter.form}, [1, 77]", exporter.opset, exporter.dynamo), library)
                )
                tools = TOOLS if quick and exporter.opset in (17, 18) else []
                suite.export(
                    short(f"{stem}_text", exporter, suffix),
                    ids_graph(Encode(model, "encode_text"), free),
                    form_of,
                    f"open_clip text, {form}",
                    [("", "text", fields)],
                    tools,
                )


def timm_cases(suite, seed):
    import timm
    from timm.layers import set_fused_attn

    library = ("timm",)
    base = {
        "img_size": SIZE,
        "patch_size": 8,
        "embed_dim": WIDTH,
        "depth": 2,
        "num_heads": HEADS,
        "num_classes": 24,
        "pre_norm": True,
    }
    variants = {
        "ViT, fused": ({}, True),
        "ViT": ({}, False),
        "ViT, qk-norm": ({"qk_norm": True}, True),
        "ViT, biased head": ({"biased": True}, True),
        "ViT, registers": ({"reg_tokens": 4}, True),
        "ViT, average pool": ({"global_pool": "avg", "fc_norm": False}, True),
    }
    for form, (options, fused) in variants.items():
        set_fused_attn(fused)
        options = dict(options)
        biased = options.pop("biased", False)
        model = timm.models.vision_transformer.VisionTransformer(**base, **options)
        if not biased:
            model.head = nn.Linear(WIDTH, 24, bias=False)
        randomise(model, seed)
        block, pixels = model.blocks[-1], image(SIZE, seed)
        copy = exact(model)
        hidden = last_input(copy, copy.blocks[-1], pixels.double())
        weights = {"ln1.weight": block.norm1.weight, "ln1.bias": block.norm1.bias}
        for name, weight, bias in zip("qkv", block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)):
            weights |= {f"{name}.weight": weight, f"{name}.bias": bias}
        weights |= {"out.weight": block.attn.proj.weight, "out.bias": block.attn.proj.bias}
        weights |= {
            "post_ln.weight": model.norm.weight,
            "post_ln.bias": model.norm.bias,
            "visual_projection.weight": model.head.weight,
        }
        right = form in ("ViT, fused", "ViT")
        tower = Tower(weights, HEADS, 1e-6, pixels, hidden)
        stem = "timm_" + form.lower().replace(",", "").replace(" ", "_").replace("-", "_")
        expected = suite.expect(stem, tower.values(seed) if right else {"pixels": pixels.numpy()})
        case = [("", "head" if right else "refuse-head", tower.fields(expected, dynamic=right))]
        for exporter in (torchscript(17), dynamo(18), dynamo(23)):
            if not right and exporter.opset == 23:
                continue
            tools = TOOLS if form == "ViT, fused" and exporter.opset != 23 else []
            suite.export(
                short(stem, exporter),
                pixels_graph(model, 2, True),
                named(exporter, library),
                f"timm {form}",
                case,
                tools,
            )
    set_fused_attn(True)


def openai_model():
    """OpenAI's module by its file: the package's own `__init__` wants an old setuptools."""
    folder = importlib.util.find_spec("clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("openai_clip_model", f"{folder}/model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exact_openai(module):
    """In float64; OpenAI's norms would compute in float32."""
    copy = exact(module)
    for part in copy.modules():
        if type(part).__name__ == "LayerNorm":
            part.__class__ = nn.LayerNorm
    return copy


def openai_cases(suite, seed):
    library = ("clip-anytorch",)
    tokenizer = save_tokenizer(suite.folder / "t77", 77)
    # The module has 64 columns in every head of its vision tower: width 64 has one, 128 has two.
    for width in (64, 128):
        model = openai_model().CLIP(40, SIZE, 2, width, 8, 77, len(VOCABULARY), 32, 2, 2)
        randomise(model, seed)
        visual, pixels = model.visual, image(SIZE, seed)
        copy = exact_openai(visual)
        hidden = last_input(copy, copy.transformer.resblocks[-1], pixels.double(), batch_first=False)
        tower = Tower(
            packed(visual.transformer.resblocks[-1], visual.proj, visual.ln_post), width // 64, 1e-5, pixels, hidden
        )
        stem = f"openai_{width}"
        expected = suite.expect(stem, tower.values(seed))
        for exporter in (torchscript(14), torchscript(17), dynamo(18), dynamo(23)):
            for free in (False, True):
                # TorchScript computes the heads of a free batch from the batch itself.
                fields = tower.fields(expected, dynamic=free, passHeads=free and not exporter.dynamo)
                form = (
                    exporter if free else type(exporter)(f"{exporter.form}, batch 1", exporter.opset, exporter.dynamo)
                )
                suite.export(
                    short(stem, exporter, "" if free else "_fixed"),
                    pixels_graph(Encode(model, "encode_image"), 2 if free else 1, free),
                    named(form, library),
                    f"OpenAI CLIP vision, {width} wide",
                    [("", "head", fields)],
                    TOOLS if width == 64 and exporter.opset in (17, 18) else [],
                )
        if width != 64:
            continue
        text = exact_openai(model)
        rows = lambda ids: (
            text.ln_final(
                text.transformer((text.token_embedding(ids) + text.positional_embedding).permute(1, 0, 2)).permute(
                    1, 0, 2
                )
            )
            @ text.text_projection
        )
        fields = {"tokenizer": "t77", "expected": suite.expect(f"{stem}_text", *rows_of(tokenizer, rows))}
        for exporter in (torchscript(14), torchscript(17), dynamo(18)):
            for free in (False, True):
                form = (
                    exporter if free else type(exporter)(f"{exporter.form}, [1, 77]", exporter.opset, exporter.dynamo)
                )
                suite.export(
                    short(f"{stem}_text", exporter, "" if free else "_fixed"),
                    ids_graph(Encode(model, "encode_text"), free),
                    named(form, library),
                    "OpenAI CLIP text",
                    [("", "text", fields)],
                    TOOLS if exporter.opset == 17 else [],
                )


def cases(suite, seed):
    open_clip_cases(suite, seed)
    timm_cases(suite, seed)
    openai_cases(suite, seed)
