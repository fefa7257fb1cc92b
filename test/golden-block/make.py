"""
Cases of the last block beside those that this folder began with: numpy in float64, written from the equations (BlockHead.analyze has
them) and not from the package's code. Run in any Python with numpy: python3 test/golden-block/make.py
"""
import json
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
NAMES = {np.dtype("float32"): "F32", np.dtype("float64"): "F64", np.dtype("int64"): "I64"}


def save(name, tensors, config):
    header, chunks, at = {"__metadata__": {"config": json.dumps(config)}}, [], 0
    for key, value in tensors.items():
        data = np.ascontiguousarray(value).tobytes()
        header[key] = {"dtype": NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [at, at + len(data)]}
        chunks.append(data)
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    (HERE / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"".join(chunks))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def norm(x, kind, weight, bias, eps):
    if kind == "rms":
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * weight + bias


def split(x, heads):
    """[N, D] as [heads, N, dh]."""
    return x.reshape(x.shape[0], heads, -1).transpose(1, 0, 2)


def join(x):
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def rotate(x, cos, sin):
    """x: [heads, N, dh]."""
    a, b = np.split(x, 2, axis=-1)
    return x * cos + np.concatenate([-b, a], axis=-1) * sin


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def unit_rows(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def make(name, seed, rows, width, heads, kind="layer", eps=1e-6, valid=None, encoding="qq", rotary=False, bias="qkvo",
         unit=None, siglip=0, packed=False, sharp=1.0):
    rng = np.random.default_rng(seed)
    f32 = lambda *shape, scale=1.0: (rng.standard_normal(shape) * scale).astype(np.float32)
    dense = lambda out, inner, scale=1.0: f32(out, inner, scale=scale / np.sqrt(inner))
    weights = {"ln1.weight": 1 + f32(width, scale=0.2)}
    if kind == "layer":
        weights["ln1.bias"] = f32(width, scale=0.2)
    for key, letter in zip(["q", "k", "v", "out"], "qkvo"):
        weights[f"{key}.weight"] = dense(width, width, sharp if letter in "qk" else 1.0)
        if letter in bias:
            weights[f"{key}.bias"] = f32(width, scale=0.3)
    hidden = f32(rows, width, scale=1.5) + f32(width)
    tensors = {"input.hidden": hidden}
    count = rows if valid is None else valid
    dh = width // heads
    if rotary:
        angles = np.repeat(rng.uniform(0, 6, (rows, 1)), dh // 2, 1) * (0.3 ** np.arange(dh // 2))
        angles = np.concatenate([angles, angles], -1)
        tensors["input.cos"], tensors["input.sin"] = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    W = {key: value.astype(np.float64) for key, value in weights.items()}
    linear = lambda x, key: x @ W[f"{key}.weight"].T + W.get(f"{key}.bias", 0)
    L = norm(hidden[:count].astype(np.float64), kind, W["ln1.weight"], W.get("ln1.bias"), eps)
    Q, K, V = (split(linear(L, key), heads) for key in "qkv")
    first, second = {"qq": (Q, Q), "kk": (K, K), "vv": (V, V), "qk": (Q, K)}[encoding]
    A = linear(join(softmax(first @ second.transpose(0, 2, 1) / np.sqrt(dh)) @ V), "out")
    if rotary:
        cos, sin = (tensors[f"input.{t}"][:count].astype(np.float64) for t in ["cos", "sin"])
        Q, K = rotate(Q, cos, sin), rotate(K, cos, sin)
    saliency = softmax(Q @ K.transpose(0, 2, 1) / np.sqrt(dh)).mean((0, 1))
    results = {"output.attention": A, "output.saliency": saliency}
    if unit is not None:
        which = np.array(unit, dtype=np.int64)
        tensors["input.unit"] = np.concatenate([which, np.full(rows - count, -1, dtype=np.int64)])
        results["output.unit_saliency"] = np.array([saliency[which == u].mean() for u in range(which.max() + 1)])

    config = {"kind": "block", "cls": False, "heads": heads, "norm": kind, "eps": eps}
    if valid is not None:
        config["valid"] = valid
    if encoding != "qq":
        config["encoding"] = encoding
    if siglip:
        config["siglip"] = True
        weights["probe"] = f32(width)
        for key in ["post_ln", "head_ln"]:
            weights[f"{key}.weight"], weights[f"{key}.bias"] = 1 + f32(width, scale=0.2), f32(width, scale=0.2)
        for key in ["head_q", "head_k", "head_v", "head_out"]:
            weights[f"{key}.weight"], weights[f"{key}.bias"] = dense(width, width), f32(width, scale=0.3)
        weights["fc1.weight"], weights["fc1.bias"] = dense(siglip, width), f32(siglip, scale=0.3)
        weights["fc2.weight"], weights["fc2.bias"] = dense(width, siglip), f32(width, scale=0.3)
        W = {key: value.astype(np.float64) for key, value in weights.items()}

        def head(rows):
            """The pooling head on one sequence: its output, and the probe's attention [heads, rows]."""
            q, k, v = split(linear(W["probe"][None], "head_q"), heads), split(linear(rows, "head_k"), heads), split(linear(rows, "head_v"), heads)
            p = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(dh))
            y = linear(join(p @ v), "head_out")
            inner = gelu(linear(norm(y, "layer", W["head_ln.weight"], W["head_ln.bias"], eps), "fc1"))
            return (y + linear(inner, "fc2"))[0], p[:, 0]

        h = norm(A, "layer", W["post_ln.weight"], W["post_ln.bias"], eps)
        results["output.embedding"] = unit_rows(np.stack([head(h[i : i + 1])[0] for i in range(count)]))
        whole, p = head(h)
        results["output.global"], results["output.probe_saliency"] = unit_rows(whole), p.mean(0)
    if packed:
        for part in ["weight", "bias"]:
            weights[f"qkv.{part}"] = np.concatenate([weights.pop(f"{key}.{part}") for key in "qkv"])
    save(name, {**tensors, **{f"weight.{key}": value for key, value in weights.items()}, **results}, config)


def unequal(seed, rows, units):
    """Units of different sizes, in no order, each with a patch at least."""
    rng = np.random.default_rng(seed)
    return rng.permutation(np.concatenate([np.arange(units), rng.integers(0, units, rows - units)]))


make("made-siglip-padded-units", 1, 53, 36, 3, valid=41, unit=unequal(1, 41, 7), siglip=52)
make("made-siglip-rotary-vv", 2, 34, 48, 4, rotary=True, encoding="vv", siglip=64, unit=unequal(2, 34, 34))
make("made-siglip-one-valid", 3, 9, 32, 2, valid=1, encoding="qk", siglip=40)
make("made-rms-padded-rotary-qk", 4, 67, 48, 3, kind="rms", valid=50, rotary=True, encoding="qk", unit=unequal(4, 50, 9))
make("made-layer-padded-kk", 5, 40, 40, 1, valid=7, encoding="kk", unit=unequal(5, 7, 3), bias="qvo")
make("made-rms-packed", 6, 45, 40, 2, kind="rms", rotary=True, packed=True, unit=unequal(6, 45, 40))
make("made-one-patch", 7, 1, 32, 4, kind="rms", rotary=True, unit=[0])
make("made-sharp", 8, 61, 72, 1, eps=1e-5, sharp=4.0, rotary=True, unit=unequal(8, 61, 2), bias="")
