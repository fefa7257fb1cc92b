#!/usr/bin/env python3
"""Loads the files of torch-cases.ts with PyTorch and NumPy, compares them with their conversion of the same numbers, bit by bit, and
writes the SHA-256 of each that it accepted. Also writes what torch.save and numpy.save themselves make of three rows.

    npx tsx test/serving/torch-cases.ts out/torch-cases && python test/serving/torch_check.py out/torch-cases
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
HERE = Path(__file__).parent
FIXTURES = HERE.parent / "fixtures" / "vllm"


def bits(tensor):
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


folder = Path(sys.argv[1])
accepted = {}
for file in sorted(path for path in folder.iterdir() if path.suffix != ".f32"):
    shape, rest = file.name.split("-")
    dtype, form = rest.split(".")
    rows, width = map(int, shape.split("x"))
    values = torch.from_numpy(np.fromfile(f"{file}.f32", "<f4").reshape(rows, width))
    if form == "torch":
        read = torch.load(file, weights_only=True, map_location="cpu")
    else:
        read = torch.from_numpy(np.load(file, allow_pickle=False))
    wanted = values.to(DTYPES[dtype])
    assert read.dtype == wanted.dtype and read.shape == wanted.shape, file
    assert torch.equal(bits(read), bits(wanted)), file
    if form == "npy":
        np.save(folder / "own", read.numpy())
        assert (folder / "own.npy").read_bytes() == file.read_bytes(), file
        (folder / "own.npy").unlink()
    accepted[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()

about = {"torch": torch.__version__, "numpy": np.__version__, "accepted": accepted}
(HERE / "torch-accepted.json").write_text(json.dumps(about, indent=1) + "\n")
for name, dtype in DTYPES.items():
    rows = ((torch.arange(3 * 5) * 7919 % 65521 - 32760) / 1024).reshape(3, 5)
    torch.save(rows.to(dtype), FIXTURES / f"torch-save-{name}.pt")
print(f"{len(accepted)} files accepted by torch {torch.__version__}")
