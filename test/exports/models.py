"""Tiny CLIPs with random weights, and what PyTorch says of them in float64."""

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import transformers
from oracle import head_values
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig

TEXTS = [
    "a photo of a cat",
    "what colour is the dog's 2nd ball?",
    "Is the fence made of wood or metal",
    "left",
]


def randomise(module, seed):
    """Weights as trained ones are: products keep their scale, norms are near one, nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda like: torch.randn(like.shape, generator=generator)
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if weight.ndim == 1 and name.endswith("weight"):
                weight.copy_(1 + 0.2 * normal(weight))
            elif weight.ndim == 1 and "class_embedding" not in name:
                weight.copy_(0.2 * normal(weight))
            elif weight.ndim >= 2 and "embedding" not in name and "pos" not in name and "token" not in name:
                factor = 2.0 if any(part in name for part in ("q_proj", "k_proj", "in_proj", "qkv")) else 1.0
                weight.copy_(factor * normal(weight) / np.sqrt(weight[0].numel()))
            else:
                weight.copy_(0.7 * normal(weight))
    return module.eval()


def exact(module):
    """The same in float64."""
    return copy.deepcopy(module).double().eval()


@dataclass
class Tower:
    """A vision tower and its head: the weights by the names of the manifest's format, and the hidden states of one image."""

    weights: dict
    heads: int
    eps: float
    pixels: torch.Tensor
    hidden: np.ndarray
    keeps: list = field(default_factory=lambda: [2, 7, 16])

    @property
    def embedding(self):
        return len(self.weights["visual_projection.weight"])

    def values(self, seed):
        weights = {name: value.detach().double().numpy() for name, value in self.weights.items()}
        chosen = head_values(self.hidden, weights, self.heads, self.eps, self.embedding, self.keeps, seed)
        stored = {f"weight.{name}": value for name, value in weights.items()}
        return {"pixels": self.pixels.numpy(), "hidden": self.hidden, **stored, **chosen}

    def fields(self, expected, **more):
        return {
            "expected": expected,
            "heads": self.heads,
            "eps": self.eps,
            "embedding": self.embedding,
            "classToken": True,
            "keeps": self.keeps,
            **more,
        }


def last_input(module, layer, inputs, batch_first=True):
    """[N, D]: what enters a layer when the module sees the inputs."""
    seen = {}

    def hook(_, args, kwargs):
        seen["states"] = args[0] if args else kwargs["hidden_states"]

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    with torch.no_grad():
        module(inputs)
    handle.remove()
    states = seen["states"].detach()
    return (states[0] if batch_first else states[:, 0]).numpy()


def image(size, seed, batch=1):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def clip(
    seed,
    *,
    vision=36,
    text=24,
    heads=3,
    text_heads=2,
    projection=20,
    size=32,
    patch=8,
    eps=1e-5,
    act="quick_gelu",
    context=77,
    eos=None,
    attention="sdpa",
    layers=2,
):
    """A `CLIPModel` of Hugging Face."""
    shared = {"num_hidden_layers": layers, "hidden_act": act, "layer_norm_eps": eps, "projection_dim": projection}
    config = CLIPConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=vision,
            intermediate_size=2 * vision,
            num_attention_heads=heads,
            image_size=size,
            patch_size=patch,
            **shared,
        ).to_dict(),
        text_config=CLIPTextConfig(
            hidden_size=text,
            intermediate_size=2 * text,
            num_attention_heads=text_heads,
            vocab_size=len(VOCABULARY),
            max_position_embeddings=context,
            bos_token_id=len(VOCABULARY) - 2,
            eos_token_id=eos or len(VOCABULARY) - 1,
            pad_token_id=1,
            **shared,
        ).to_dict(),
        projection_dim=projection,
    )
    config._attn_implementation = attention
    return randomise(CLIPModel(config), seed)


HF_HEAD = {
    "ln1": "layer_norm1",
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "out": "self_attn.out_proj",
}


def clip_tower(model, seed, size, keeps=None, pixels=None):
    """The head of Hugging Face's CLIP vision tower."""
    vision, config = model.vision_model, model.vision_model.config
    layer = vision.encoder.layers[-1]
    weights = {}
    for name, path in HF_HEAD.items():
        part = layer.get_submodule(path)
        weights |= {f"{name}.weight": part.weight, f"{name}.bias": part.bias}
    weights |= {"post_ln.weight": vision.post_layernorm.weight, "post_ln.bias": vision.post_layernorm.bias}
    weights["visual_projection.weight"] = model.visual_projection.weight
    pixels = image(size, seed + 1000) if pixels is None else pixels
    tower = exact(vision)
    hidden = last_input(tower, tower.encoder.layers[-1], pixels.double())
    return Tower(weights, config.num_attention_heads, config.layer_norm_eps, pixels, hidden, keeps or [2, 7, 16])


def text_rows(model, tokenizer, texts=TEXTS):
    """Ids and rows [T, E] of the texts, as Hugging Face's text tower has them before normalisation."""
    # Masks of transformers 4 overflow in float64: there, the rows are of float32.
    tower = exact(model.text_model) if transformers.__version__ >= "5" else model.text_model
    projection = model.text_projection.weight.to(tower.final_layer_norm.weight.dtype)
    values = {}
    for i, text in enumerate(texts):
        ids = tokenizer.encode(text).ids
        with torch.no_grad():
            states = tower(input_ids=torch.tensor([ids])).last_hidden_state[0]
            values |= {f"ids.{i}": np.array(ids), f"rows.{i}": (states @ projection.T).numpy()}
    return values, {"texts": json.dumps(texts)}


# CLIP's byte-level BPE with a small vocabulary: all bytes, all bytes at a word's end, some merges, two special tokens.

MERGES = (
    "p h|ph o|t o</w>|pho to</w>|c a|ca t</w>|d o|do g</w>|o f</w>|t h|th e</w>|"
    "i s</w>|w o|o d</w>|wo od</w>|l e|f e|le f|fe n|c e</w>|fen ce</w>|w h|wh a|"
    "wha t</w>|o r</w>|b a|ba l|m e|me t|met a|a l</w>|lef t</w>|c o|co l"
)


def vocabulary():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [tuple(pair.split()) for pair in MERGES.split("|")]
    words = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    words += [word for word in dict.fromkeys(a + b for a, b in merges) if word not in words]
    merges = [pair for pair in merges if all(part in words for part in pair)]
    words = list(dict.fromkeys(words))
    vocab = {word: i for i, word in enumerate([*words, "<|startoftext|>", "<|endoftext|>"])}
    return vocab, merges


VOCABULARY, PAIRS = vocabulary()


def bpe():
    """CLIP's tokenizer, as Hugging Face builds it."""
    vocab, merges = VOCABULARY, PAIRS
    start, end = "<|startoftext|>", "<|endoftext|>"
    tokenizer = Tokenizer(
        models.BPE(
            vocab, merges, unk_token=end, continuing_subword_prefix="", end_of_word_suffix="</w>", fuse_unk=False
        )
    )
    tokenizer.add_special_tokens([AddedToken(start, special=True), AddedToken(end, special=True)])
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(words, behavior="removed", invert=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocab[end]), (start, vocab[start]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_tokenizer(folder: Path, context):
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": context,
        "do_lower_case": True,
        "errors": "replace",
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return tokenizer
