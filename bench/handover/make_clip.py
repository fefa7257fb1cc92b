#!/usr/bin/env python3
"""The CLIP that a LLaVA's vision tower comes from, for a LLaVA that was made without one: its vision weights, and a text tower with random
ones. Then tools/export writes both folders.

    python make_clip.py LLAVA_FOLDER OUT_FOLDER
"""

import shutil
import sys
from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, LlavaForConditionalGeneration

sys.path.append(str(Path(__file__).parents[2] / "test" / "exports"))
from models import VOCABULARY, randomise, save_tokenizer  # noqa: E402

source, out = map(Path, sys.argv[1:3])
llava = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
vision = llava.config.vision_config
text = CLIPTextConfig(
    hidden_size=vision.hidden_size,
    intermediate_size=2 * vision.hidden_size,
    num_attention_heads=vision.num_attention_heads,
    num_hidden_layers=vision.num_hidden_layers,
    vocab_size=len(VOCABULARY),
    max_position_embeddings=77,
    bos_token_id=len(VOCABULARY) - 2,
    eos_token_id=len(VOCABULARY) - 1,
    pad_token_id=1,
    projection_dim=vision.projection_dim,
)
config = CLIPConfig(vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=vision.projection_dim)
clip = randomise(CLIPModel(config), 1)
tower = llava.model.vision_tower
clip.vision_model.load_state_dict(getattr(tower, "vision_model", tower).state_dict())
clip.save_pretrained(out)
save_tokenizer(out, 77)
shutil.copyfile(source / "processor_config.json", out / "processor_config.json")
