"""Hugging Face's CLIP: vision tower, text tower, and both in one file, by every exporter and tool."""

import torch
from exporters import BLOCKS, BYTES, EXACT, HALF, ONNXSIM, ONNXSLIM, RUNTIME_LEVELS, Graph, dynamo, torchscript
from models import VOCABULARY, clip, clip_tower, image, randomise, save_tokenizer, text_rows
from torch import nn

END = len(VOCABULARY) - 1
REFUSED = {"refuse": {"code": "ERR_GRAPH"}}


class Vision(nn.Module):
    """`CLIPVisionModelWithProjection`."""

    def __init__(self, model):
        super().__init__()
        self.vision_model, self.visual_projection = model.vision_model, model.visual_projection

    def forward(self, pixel_values):
        output = self.vision_model(pixel_values)
        return self.visual_projection(output.pooler_output), output.last_hidden_state


class Text(nn.Module):
    """`CLIPTextModelWithProjection` with the inputs that an export was asked for."""

    def __init__(self, model, inputs=("input_ids",)):
        super().__init__()
        self.text_model, self.text_projection, self.names = model.text_model, model.text_projection, inputs

    def forward(self, *args):
        return self.text_projection(self.text_model(**dict(zip(self.names, args))).pooler_output)


class TypedText(Text):
    """A text tower with a table of token types, as BERT has one."""

    def __init__(self, model):
        super().__init__(model)
        self.types = nn.Embedding(2, model.config.text_config.hidden_size)

    def forward(self, input_ids, token_type_ids):
        added = self.types(token_type_ids)
        embedding = self.text_model.embeddings
        plain = embedding.forward
        embedding.forward = lambda *args, **kwargs: plain(*args, **kwargs) + added
        try:
            return self.text_projection(self.text_model(input_ids).pooler_output)
        finally:
            embedding.forward = plain


class Whole(nn.Module):
    """`CLIPModel` with the outputs in a given order."""

    def __init__(self, model, outputs):
        super().__init__()
        self.model, self.outputs = model, outputs

    def forward(self, input_ids, pixel_values, attention_mask):
        output = self.model(input_ids=input_ids, pixel_values=pixel_values, attention_mask=attention_mask)
        return tuple(output[name] for name in self.outputs)


def vision_graph(model, size, free=True):
    batch = {"pixel_values": {0: "batch"}} if free else {}
    return Graph(
        Vision(model), {"pixel_values": image(size, 7, 2 if free else 1)}, ["image_embeds", "last_hidden_state"], batch
    )


def text_inputs(names, length=9, batch=2, dtype=torch.int64):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(5, 500, (batch, length), generator=generator)
    ids[:, 0], ids[:, -1] = END - 1, END
    made = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "position_ids": torch.arange(length).expand(batch, length).contiguous(),
        "token_type_ids": torch.zeros_like(ids),
    }
    return {name: made[name].to(dtype) for name in names}


def text_graph(model, names=("input_ids",), module=None, **shape):
    free = {} if shape.pop("fixed", False) else {name: {0: "batch", 1: "sequence"} for name in names}
    return Graph(module or Text(model, names), text_inputs(names, **shape), ["text_embeds"], free)


def quantised_vision(fields):
    return [("", "refuse-head", {**fields, **REFUSED})]


def vision_cases(suite, seed):
    for name, shape, exporters in (
        (
            "a",
            {"size": 32, "patch": 8, "act": "quick_gelu", "eps": 1e-5},
            [torchscript(opset) for opset in (11, 12, 14, 16, 17, 18, 20)] + [dynamo(opset) for opset in (18, 21, 23)],
        ),
        (
            "b",
            {"size": 56, "patch": 14, "act": "gelu", "eps": 1e-6, "vision": 40, "heads": 5, "projection": 24},
            [torchscript(opset) for opset in (14, 17, 20)]
            + [dynamo(opset) for opset in (18, 20, 22, 24)]
            + [dynamo(18, "opset 18, optimize=False", optimize=False)],
        ),
    ):
        size = shape["size"]
        for attention in ("eager", "sdpa"):
            model = clip(seed, attention=attention, **shape)
            tower = clip_tower(model, seed, size)
            fields = tower.fields(suite.expect(f"clip_{name}", tower.values(seed)))
            for exporter in exporters:
                if attention == "sdpa" and exporter.opset < 14:
                    continue
                if exporter.dynamo and attention == "eager" and exporter.opset not in (18, 23):
                    continue
                tools = []
                if (attention, exporter.form) in (("sdpa", "opset 17"), ("sdpa", "opset 18")):
                    half = [("", "head", {**fields, "tolerance": 2e-2, "dynamic": True})]
                    tools = [(tool, None) for tool in EXACT] + [(tool, half) for tool in HALF]
                    tools += [(tool, quantised_vision(fields)) for tool in (*BYTES, *BLOCKS)]
                short = f"vision_{name}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}_{attention}"
                short += "_raw" if exporter.options else ""
                suite.export(
                    short,
                    vision_graph(model, size),
                    exporter,
                    f"CLIP vision, {attention}",
                    [("", "head", {**fields, "dynamic": True})],
                    tools,
                )
        suite.export(
            f"vision_{name}_not_folded",
            vision_graph(model, size),
            torchscript(17, "opset 17, no constant folding", do_constant_folding=False),
            "CLIP vision, sdpa",
            [("", "head", {**fields, "dynamic": True})],
        )
        suite.export(
            f"vision_{name}_fixed",
            vision_graph(model, size, free=False),
            torchscript(17, "opset 17, batch 1"),
            "CLIP vision, sdpa",
            [("", "head", fields)],
            [(ONNXSIM, None), (ONNXSLIM, None)],
        )


def text_cases(suite, seed):
    for name, context, eos, attention in (
        ("t77", 77, None, "sdpa"),
        ("t20", 20, None, "eager"),
        ("legacy", 77, 2, "sdpa"),
    ):
        model = clip(
            seed + 1, context=context, eos=eos, attention=attention, act="gelu" if name == "t20" else "quick_gelu"
        )
        tokenizer = save_tokenizer(suite.folder / name, context)
        fields = {"tokenizer": name, "expected": suite.expect(f"text_{name}", *text_rows(model, tokenizer))}
        case = [("", "text", fields)]
        subject = f"CLIP text, {attention}" + (", eos_token_id 2" if eos else "")
        mask = ("input_ids", "attention_mask")
        tools = [(tool, None) for tool in EXACT]
        rough = lambda tolerance: [("", "text", {**fields, "tolerance": tolerance})]
        tools += [(tool, rough(2e-2)) for tool in HALF]
        tools += [(tool, rough(tool.tolerance)) for tool in (*BYTES, *BLOCKS)]
        opsets = [torchscript(opset) for opset in ((14, 17, 18, 20) if attention == "sdpa" else (11, 14, 17))]
        for exporter in [*opsets, *[dynamo(opset) for opset in ((18, 23) if name == "legacy" else (18, 21, 23))]]:
            short = f"text_{name}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}"
            behind = tools if exporter.form in ("opset 17", "opset 18") and name == "t77" else []
            suite.export(short, text_graph(model), exporter, subject, case, behind)
        for exporter in (torchscript(17, "opset 17, mask"), dynamo(18, "opset 18, mask")):
            short = f"text_{name}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}_mask"
            suite.export(
                short,
                text_graph(model, mask),
                exporter,
                subject,
                case,
                [(ONNXSIM, None), (ONNXSLIM, None), (RUNTIME_LEVELS[2], None)],
            )
        suite.export(
            f"text_{name}_int32",
            text_graph(model, mask, dtype=torch.int32),
            torchscript(17, "opset 17, mask, int32"),
            subject,
            case,
        )
        suite.export(
            f"text_{name}_fixed",
            text_graph(model, fixed=True, length=context, batch=1),
            torchscript(17, f"opset 17, [1, {context}]"),
            subject,
            case,
            [(ONNXSIM, None)],
        )
        suite.export(
            f"text_{name}_fixed_mask",
            text_graph(model, mask, fixed=True, length=context, batch=1),
            dynamo(18, f"opset 18, mask, [1, {context}]"),
            subject,
            case,
        )
        for names in (
            ("input_ids", "position_ids"),
            ("input_ids", "attention_mask", "position_ids"),
            ("position_ids", "input_ids", "attention_mask"),
        ):
            short = f"text_{name}_" + "_".join(part.split("_")[0] for part in names)
            suite.export(
                short,
                text_graph(model, names),
                torchscript(17, f"opset 17, inputs {', '.join(names)}"),
                subject,
                case,
                [(ONNXSLIM, None)],
            )
        suite.export(
            f"text_{name}_dy18_positions",
            text_graph(model, ("input_ids", "position_ids")),
            dynamo(18, "opset 18, inputs input_ids, position_ids"),
            subject,
            case,
        )


def typed_cases(suite, seed):
    model = clip(seed + 1)
    module = randomise(TypedText(model), seed + 2)
    tokenizer = save_tokenizer(suite.folder / "t77", 77)
    # Type 0 everywhere adds one row to the position embedding.
    plain = clip(seed + 1)
    plain.load_state_dict({k: v for k, v in model.state_dict().items()})
    with torch.no_grad():
        plain.text_model.embeddings.position_embedding.weight += module.types.weight[0]
    fields = {"tokenizer": "t77", "expected": suite.expect("text_typed", *text_rows(plain, tokenizer))}
    names = ("input_ids", "token_type_ids")
    for exporter in (torchscript(17), dynamo(18)):
        short = f"text_types_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}"
        suite.export(
            short, text_graph(model, names, module), exporter, "CLIP text with token types", [("", "text", fields)]
        )


ORDERS = {
    "logits": ["logits_per_image", "logits_per_text", "text_embeds", "image_embeds"],
    "image_first": ["image_embeds", "text_embeds"],
    "text_first": ["text_embeds", "image_embeds"],
}


def whole_cases(suite, seed):
    tokenizer = save_tokenizer(suite.folder / "t77", 77)
    for widths, shape in (
        ("same", {"vision": 36, "text": 36, "text_heads": 3}),
        ("differ", {"vision": 36, "text": 24}),
    ):
        model = clip(seed + 3, **shape)
        tower = clip_tower(model, seed, 32)
        head = tower.fields(suite.expect(f"whole_{widths}", tower.values(seed)))
        text = {"tokenizer": "t77", "expected": suite.expect(f"whole_{widths}_text", *text_rows(model, tokenizer))}
        inputs = text_inputs(("input_ids", "attention_mask"), batch=3)
        feeds = {
            "input_ids": inputs["input_ids"],
            "pixel_values": image(32, 3, 2),
            "attention_mask": inputs["attention_mask"],
        }
        free = {
            "input_ids": {0: "texts", 1: "sequence"},
            "pixel_values": {0: "images"},
            "attention_mask": {0: "texts", 1: "sequence"},
        }
        for order, outputs in ORDERS.items():
            graph = Graph(Whole(model, outputs), feeds, outputs, free)
            for exporter in (torchscript(17), dynamo(18)):
                tools = [(tool, None) for tool in (ONNXSIM, ONNXSLIM, RUNTIME_LEVELS[1])] if order == "logits" else []
                suite.export(
                    f"whole_{widths}_{order}_{'dy' if exporter.dynamo else 'ts'}{exporter.opset}",
                    graph,
                    exporter,
                    f"whole CLIP, widths {widths}, outputs {order}",
                    [("", "head", {**head, "dynamic": False}), ("_text", "text", text)],
                    tools,
                )


def cases(suite, seed):
    vision_cases(suite, seed)
    text_cases(suite, seed)
    typed_cases(suite, seed)
    whole_cases(suite, seed)
