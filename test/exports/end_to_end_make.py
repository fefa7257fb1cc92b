#!/usr/bin/env python3
"""
Makes a tiny `LlavaForConditionalGeneration` and the `CLIPModel` whose vision tower it has, with random weights, as `save_pretrained` writes them,
and what Hugging Face answers. `tools/export` then turns them into folders; see end-to-end.ts, which runs this.

    python end_to_end_make.py folder [--seed 12]
"""
