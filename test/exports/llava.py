"""
LLaVA's vision encoder (`LlavaForConditionalGeneration` of Hugging Face) in the forms that export scripts write it, with the
CLIP folder behind it.
"""

import copy

import numpy as np
import torch
from exporters import (
    BLOCKS,
    BYTES,
    EXACT,
    HALF,
    ONNXSIM,
    ONNXSLIM,
    RUNTIME_LEVELS,
    Graph,
    dynamo,
    run_file,
    torchscript,
)
from hugging_face import text_graph, vision_graph
from models import TEXTS, clip, clip_tower, exact, image, randomise, save_tokenizer, text_rows
from oracle import MARGIN, Analysis
from torch import nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

SIZE, WIDTH, KEEPS = 40, 44, [2, 6]


def llava_of(model, seed, *, vocabulary=99, image=98, layers=1, layer=-2, **config):
    """A `LlavaForConditionalGeneration` around a CLIP's vision tower; `image` is the id of the image token."""
    vision = copy.deepcopy(model.config.vision_config)
    text = LlamaConfig(
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=vocabulary,
        head_dim=22,
    )
    made = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_id=image, vision_feature_layer=layer, **config)
    )
    randomise(made, seed + 5)
    # In transformers 4 the tower is one module further in.
    tower = made.model.vision_tower
    getattr(tower, "vision_model", tower).load_state_dict(model.vision_model.state_dict())
    tower.config._attn_implementation = model.vision_model.config._attn_implementation
    return made.eval()


class Encoder(nn.Module):
    """What Transformers.js calls vision_encoder: pixel values to image features, by the steps of `get_image_features`."""

    def __init__(self, llava, form="plain"):
        super().__init__()
        self.vision_tower, self.projector = llava.model.vision_tower, llava.model.multi_modal_projector
        self.form, self.layer = form, llava.config.vision_feature_layer

    def forward(self, pixel_values):
        states = self.vision_tower(pixel_values, output_hidden_states=True).hidden_states
        hidden = states[self.layer] if isinstance(self.layer, int) else torch.cat([states[i] for i in self.layer], -1)
        patches = hidden if self.form == "full" else hidden[:, 3 if self.form == "dropsthree" else 1 :]
        if self.form == "flipped":
            patches = patches.flip(1)
        features = self.projector(patches)
        if self.form == "rows":
            return features.flatten(0, 1)
        if self.form == "reshaped":
            return features.reshape(-1, features.shape[-1])
        if self.form == "table":
            return features + self.table
        if self.form == "two outputs":
            return features, hidden
        return features


class ImageFeatures(nn.Module):
    """`model.get_image_features`, which returns a list: one picture of it, or all of them in one tensor."""

    def __init__(self, llava, joined):
        super().__init__()
        self.llava, self.joined = llava, joined

    def forward(self, pixel_values):
        features = self.llava.get_image_features(pixel_values).pooler_output
        return torch.cat(features) if self.joined else features[0]


def encoder_graph(module, free=True):
    batch = {"pixel_values": {0: "batch"}} if free else {}
    return Graph(module, {"pixel_values": image(SIZE, 7, 2 if free else 1)}, ["image_features"], batch)


def expected(suite, name, model, llava, tower, rows, question):
    """Features of all patches and of the kept ones, in float64."""
    analysis = analysis_of(tower)
    projector = exact(llava.model.multi_modal_projector)
    project = lambda patches: projector(torch.from_numpy(np.ascontiguousarray(patches))).detach().numpy()
    values = {"pixels": tower.pixels.numpy(), "hidden": tower.hidden, "features": project(analysis.patches)}
    for keep in KEEPS:
        kept, _, tokens, margin = analysis.choose(rows, keep)
        if margin < MARGIN:
            raise ValueError(f"the question decides by {margin:.1e} only: take another seed")
        values |= {f"kept.{keep}": kept, f"features.{keep}": project(tokens)}
    return suite.expect(name, values)


def cases(suite, seed):
    shape = {"size": SIZE, "patch": 8, "vision": 36, "heads": 3, "projection": 24, "layers": 3}
    model = clip(seed + 11, **shape)
    folder = suite.folder / "clip-folder"
    tokenizer = save_tokenizer(folder, 77)
    (folder / "onnx").mkdir(exist_ok=True)
    torchscript(17).write(vision_graph(model, SIZE), folder / "onnx/vision_model.onnx")
    torchscript(17).write(text_graph(model), folder / "onnx/text_model.onnx")
    tower = clip_tower(model, seed + 11, SIZE)
    question = next(i for i in range(len(TEXTS)) if clearly(tower, text_rows(model, tokenizer)[0][f"rows.{i}"]))
    rows = text_rows(model, tokenizer)[0][f"rows.{question}"]
    fields = {"clip": "clip-folder", "question": TEXTS[question], "keeps": KEEPS}
    make = lambda name, llava: {**fields, "expected": expected(suite, name, model, llava, tower, rows, TEXTS[question])}

    plain = llava_of(model, seed)
    right = make("llava", plain)
    case = [("", "llava", right)]
    attentions = {"sdpa": plain, "eager": llava_of(clip(seed + 11, attention="eager", **shape), seed)}
    for attention, llava in attentions.items():
        opsets = [torchscript(opset) for opset in ((14, 17, 20) if attention == "sdpa" else (11, 14, 17))]
        for exporter in [*opsets, *[dynamo(opset) for opset in ((18, 21, 23) if attention == "sdpa" else (18,))]]:
            short = f"llava_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}_{attention}"
            graph = encoder_graph(Encoder(llava))
            tools = (
                [(tool, None) for tool in EXACT]
                if exporter.form in ("opset 17", "opset 18") and attention == "sdpa"
                else []
            )
            suite.export(short, graph, exporter, f"LLaVA vision encoder, {attention}", case, tools)
            if tools:
                rounded(suite, short, graph, exporter, fields, tower)
    for form in ("rows", "reshaped", "two outputs"):
        for exporter in (torchscript(14), dynamo(18)):
            short = f"llava_{form.replace(' ', '_')}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}"
            tools = [(ONNXSIM, None), (ONNXSLIM, None)] if form == "rows" else []
            suite.export(
                short, encoder_graph(Encoder(plain, form)), exporter, f"LLaVA vision encoder, {form}", case, tools
            )
    for joined in (False, True):
        form = "torch.cat(get_image_features(...))" if joined else "get_image_features(...)[0]"
        for exporter in (
            torchscript(14, "opset 14, batch 1"),
            torchscript(17, "opset 17, batch 1"),
            dynamo(18, "opset 18, batch 1"),
        ):
            short = f"llava_{'cat' if joined else 'list'}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}"
            graph = encoder_graph(ImageFeatures(plain, joined), free=False)
            suite.export(
                short,
                graph,
                exporter,
                f"LLaVA, {form}",
                case,
                [(ONNXSIM, None), (ONNXSLIM, None), (RUNTIME_LEVELS[1], None)],
            )
    bare = llava_of(model, seed + 1, multimodal_projector_bias=False)
    suite.export(
        "llava_no_bias",
        encoder_graph(Encoder(bare)),
        torchscript(17),
        "LLaVA vision encoder, projector without bias",
        [("", "llava", make("llava_no_bias", bare))],
        [(ONNXSIM, None)],
    )
    suite.export(
        "llava_fixed",
        encoder_graph(Encoder(plain), free=False),
        torchscript(17, "opset 17, batch 1"),
        "LLaVA vision encoder, sdpa",
        case,
        [(ONNXSIM, None)],
    )
    refused(suite, seed, model, plain, right)


def refused(suite, seed, model, plain, right):
    """Files whose rows are not, in order, the patches before CLIP's last layer: each would give wrong tokens in silence."""
    table = Encoder(plain, "table")
    table.table = nn.Parameter(torch.randn(25, WIDTH, generator=torch.Generator().manual_seed(seed)))
    subjects = {
        "flipped": Encoder(plain, "flipped"),
        "dropsthree": Encoder(plain, "dropsthree"),
        "table": table,
        "last_layer": Encoder(llava_of(model, seed, layer=-1)),
        "third_last_layer": Encoder(llava_of(model, seed, layer=-3)),
        "two_layers": Encoder(llava_of(model, seed, layer=[-2, -3])),
    }
    for name, module in subjects.items():
        exporters = (torchscript(14), dynamo(18)) if name in ("flipped", "dropsthree", "table") else (torchscript(17),)
        for exporter in exporters:
            short = f"llava_{name}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}"
            suite.export(
                short,
                encoder_graph(module),
                exporter,
                f"LLaVA vision encoder, {name.replace('_', ' ')}",
                [("", "refuse-llava", {**right, "refuse": {"says": f"{short}.onnx"}})],
            )


def rounded(suite, short, graph, exporter, fields, tower):
    """Files of coarser numbers: their own features by ONNX Runtime are what is expected."""
    for tool in (*HALF, *BYTES, *BLOCKS):
        source = suite.folder / "models" / f"{short}.onnx"
        name = f"{short}_{tool.name} {tool.form}".lower().replace(",", "").replace(" ", "_").replace(".", "_")
        path = suite.write(name, lambda path, tool=tool: tool.write(source, path, graph))
        if path is None:
            continue
        features = run_file(path, {"pixel_values": tower.pixels})[0][0].astype(np.float32)
        values = {"pixels": tower.pixels.numpy(), "features": features}
        tolerance = 2e-2 if tool in HALF else 5e-2
        suite.add(
            name,
            "llava",
            path,
            exporter=tool.name,
            versions=f"{tool.versions}, {exporter.versions}",
            form=f"LLaVA vision encoder, {exporter.name} {exporter.form}, {tool.form}",
            **fields,
            expected=suite.expect(name, values),
            tolerance=tolerance,
        )


def analysis_of(tower):
    weights = {key: value.detach().double().numpy() for key, value in tower.weights.items()}
    return Analysis(tower.hidden, weights, tower.heads, tower.eps)


def clearly(tower, rows):
    analysis = analysis_of(tower)
    return min(analysis.choose(rows, keep)[3] for keep in KEEPS) >= MARGIN
