"""Writes safetensors/: a checkpoint as transformers saves it, and one of types that few files have. Run in this folder; needs transformers."""
import torch
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

torch.manual_seed(1)
tower = dict(hidden_size=8, intermediate_size=12, num_attention_heads=2, num_hidden_layers=2)
config = CLIPConfig(
    text_config=dict(tower, vocab_size=20, max_position_embeddings=8, bos_token_id=0, eos_token_id=1),
    vision_config=dict(tower, image_size=8, patch_size=4),
    projection_dim=6,
)
CLIPModel(config).half().save_pretrained("safetensors")
for name in ("config.json", "generation_config.json"):
    import os

    if os.path.exists(f"safetensors/{name}"):
        os.remove(f"safetensors/{name}")
os.replace("safetensors/model.safetensors", "safetensors/clip.safetensors")
save_file({"a": torch.ones(2, 3).bfloat16(), "b": torch.ones(0, 4), "c": torch.tensor(2.0).double(), "d": torch.ones(3).bool()}, "safetensors/types.safetensors", metadata={"format": "pt"})
