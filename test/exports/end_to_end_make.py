#!/usr/bin/env python3
"""
Makes a tiny `LlavaForConditionalGeneration` and the `CLIPModel` whose vision tower it has, with random weights, as
`save_pretrained` writes them, and what Hugging Face answers to a question about a picture: with all visual tokens, and fed
with those that DeSAP keeps. end-to-end.mjs runs this, then tools/export on both folders.

    python end_to_end_make.py folder [--seed 12]
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from llava import analysis_of, llava_of
from models import clip, clip_tower, exact, save_tokenizer, text_rows
from oracle import MARGIN
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SIZE, KEEPS, NEW_TOKENS = 40, [4, 9], 6
# The chat template of llava-1.5-7b-hf.
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': '}}{% endif %}"
    "{# Render all images first #}{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def language_tokenizer():
    """Bytes, and the special tokens of LLaVA."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    tokenizer = Tokenizer(
        models.BPE({token: i for i, token in enumerate([*special, *alphabet])}, [], unk_token="<unk>")
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        padding_side="left",
        chat_template=TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )


def greedy(model, embeds, positions, following):
    """The most likely continuation of embeddings [1, n, W], computed anew for every token."""
    found = []
    for step in range(NEW_TOKENS):
        with torch.no_grad():
            states = model.model.language_model(inputs_embeds=embeds, position_ids=positions).last_hidden_state
            found.append(int(model.lm_head(states[:, -1]).argmax()))
            embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor([[found[-1]]]))], 1)
        positions = torch.cat([positions, torch.tensor([[following + step]])], 1)
        if found[-1] == 2:
            break
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=12)
    options = parser.parse_args()
    folder, seed = options.folder, options.seed

    shape = {"size": SIZE, "patch": 8, "vision": 36, "heads": 3, "projection": 24, "layers": 3}
    model = clip(seed, **shape)
    words = language_tokenizer()
    llava = llava_of(model, seed, vocabulary=len(words), image=4, layers=2)
    llava.generation_config.update(bos_token_id=1, eos_token_id=2, pad_token_id=3, max_new_tokens=NEW_TOKENS)
    images = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})

    model.save_pretrained(folder / "clip")
    images.save_pretrained(folder / "clip")
    clip_words = save_tokenizer(folder / "clip", 77)
    AutoTokenizer.from_pretrained(folder / "clip")
    llava.save_pretrained(folder / "llava")
    processor = LlavaProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    processor.save_pretrained(folder / "llava")

    picture = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    Image.fromarray(picture).save(folder / "picture.png")
    question = "what colour is the dog's 2nd ball?"
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
    prompt = processor.apply_chat_template(message, add_generation_prompt=True)
    inputs = processor(images=Image.open(folder / "picture.png"), text=prompt, return_tensors="pt")
    with torch.no_grad():
        whole = llava.generate(**inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :].tolist()

    tower = clip_tower(model, seed, SIZE, pixels=inputs["pixel_values"])
    analysis, rows = analysis_of(tower), text_rows(model, clip_words, [question])[0]["rows.0"]
    projector = exact(llava.model.multi_modal_projector)
    ids = inputs["input_ids"][0]
    first = int((ids == 4).nonzero()[0])
    pruned = {}
    for keep in KEEPS:
        kept, source, tokens, margin = analysis.choose(rows, keep)
        if margin < MARGIN:
            raise SystemExit(f"the question decides by {margin:.1e} only: take another --seed")
        stays = (ids != 4) | torch.isin(torch.arange(len(ids)) - first, torch.from_numpy(kept))
        embeds = llava.get_input_embeddings()(ids[stays][None]).detach().clone()
        embeds[0, first : first + keep] = projector(torch.from_numpy(tokens)).detach().float()
        compact, original = torch.arange(int(stays.sum()))[None], torch.arange(len(ids))[stays][None]
        pruned[keep] = {
            "kept": kept.tolist(),
            "source": source.tolist(),
            "compact": greedy(llava, embeds, compact, compact.shape[1]),
            "original": greedy(llava, embeds, original, len(ids)),
        }
    expected = {
        "question": question,
        "prompt": prompt,
        "ids": ids.tolist(),
        "whole": whole,
        "text": processor.decode(whole, skip_special_tokens=True),
        "pruned": pruned,
    }
    (folder / "expected.json").write_text(json.dumps(expected, indent=1))


if __name__ == "__main__":
    main()
