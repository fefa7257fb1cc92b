"""The graphs of a LLaVA and of a CLIP, as Transformers.js and desap open them."""

import inspect
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import DynamicCache


@dataclass
class Graph:
    """One ONNX file: a module, sample inputs by name, names of the outputs, and the axes that stay free."""

    name: str
    module: nn.Module
    inputs: dict[str, torch.Tensor]
    outputs: list[str]
    free: dict[str, dict[int, str]] = field(default_factory=dict)

    @property
    def bytes(self):
        return sum(weight.nbytes for weight in self.module.parameters())


class VisionEncoder(nn.Module):
    """Pixel values [images, 3, H, W] to image features [images, P, W]: CLIP without its last layer, then the projector."""

    def __init__(self, model):
        super().__init__()
        self.tower, self.projector = model.model.vision_tower, model.model.multi_modal_projector

    def forward(self, pixel_values):
        hidden = self.tower(pixel_values, output_hidden_states=True).hidden_states[-2]
        return self.projector(hidden[:, 1:])


class Decoder(nn.Module):
    """The language model over embeddings, with the keys and values of earlier steps as inputs and outputs."""

    def __init__(self, model):
        super().__init__()
        self.model, self.head = model.model.language_model, model.lm_head
        self.layers = self.model.config.num_hidden_layers
        parameters = inspect.signature(self.model.forward).parameters
        self.cache = "cache" if "cache" in parameters else "past_key_values"

    def forward(self, inputs_embeds, attention_mask, position_ids, *past):
        cache = DynamicCache()
        for layer in range(self.layers):
            cache.update(past[2 * layer], past[2 * layer + 1], layer)
        states = self.model(
            inputs_embeds=inputs_embeds,
            attention_mask=self.mask(attention_mask, inputs_embeds),
            position_ids=position_ids,
            use_cache=True,
            **{self.cache: cache},
        ).last_hidden_state
        present = [part for layer in cache.layers for part in (layer.keys, layer.values)]
        return self.head(states), *present

    def mask(self, attention_mask, embeds):
        """[batch, 1, queries, keys]: a key is seen when it is no padding and not behind its query, counted along the cache."""
        keys, queries = attention_mask.shape[1], embeds.shape[1]
        key, query = torch.arange(keys), torch.arange(queries) + (keys - queries)
        seen = (key[None] <= query[:, None])[None, None] & attention_mask[:, None, None].bool()
        return torch.where(seen, 0.0, torch.finfo(embeds.dtype).min).to(embeds.dtype)


class ClipVision(nn.Module):
    """Pixel values to image embeddings, not normalised."""

    def __init__(self, model):
        super().__init__()
        self.tower, self.projection = model.vision_model, model.visual_projection

    def forward(self, pixel_values):
        return self.projection(self.tower(pixel_values).pooler_output)


class ClipText(nn.Module):
    """Token ids to text embeddings, not normalised."""

    def __init__(self, model):
        super().__init__()
        self.tower, self.projection = model.text_model, model.text_projection

    def forward(self, input_ids):
        return self.projection(self.tower(input_ids).pooler_output)


# Samples have two of everything that stays free: an extent of one would be taken for a constant.


def pixels(config):
    return {"pixel_values": torch.randn(2, config.num_channels, config.image_size, config.image_size)}


def ids(vocabulary, length=5):
    return {"input_ids": torch.arange(2 * length).reshape(2, length) % vocabulary}


def llava_graphs(model):
    text = model.config.text_config
    width, past, length = text.hidden_size, 3, 4
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    size = getattr(text, "head_dim", None) or width // text.num_attention_heads
    names = [f"{layer}.{part}" for layer in range(text.num_hidden_layers) for part in ("key", "value")]
    batch = {0: "batch_size", 1: "sequence_length"}
    inputs = {
        "inputs_embeds": torch.randn(2, length, width),
        "attention_mask": torch.ones(2, past + length, dtype=torch.int64),
        "position_ids": torch.arange(past, past + length).expand(2, length).contiguous(),
        **{f"past_key_values.{name}": torch.randn(2, heads, past, size) for name in names},
    }
    free = {
        "inputs_embeds": batch,
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        "position_ids": batch,
        **{f"past_key_values.{name}": {0: "batch_size", 2: "past_sequence_length"} for name in names},
    }
    embedding = model.model.language_model.embed_tokens
    return [
        Graph(
            "vision_encoder",
            VisionEncoder(model),
            pixels(model.config.vision_config),
            ["image_features"],
            {"pixel_values": {0: "images"}},
        ),
        Graph("embed_tokens", embedding, ids(text.vocab_size), ["inputs_embeds"], {"input_ids": batch}),
        Graph("decoder_model_merged", Decoder(model), inputs, ["logits", *(f"present.{name}" for name in names)], free),
    ]


def clip_graphs(model):
    text = model.config.text_config
    batch = {0: "batch_size", 1: "sequence_length"}
    return [
        Graph(
            "vision_model",
            ClipVision(model),
            pixels(model.config.vision_config),
            ["image_embeds"],
            {"pixel_values": {0: "batch_size"}},
        ),
        Graph("text_model", ClipText(model), ids(text.vocab_size), ["text_embeds"], {"input_ids": batch}),
    ]
