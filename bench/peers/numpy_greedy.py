"""Greedy selections in numpy, float32, as a contestant of `npm run bench:greedy -- --python`, which starts this.

    OPENBLAS_NUM_THREADS=1 python3 bench/peers/numpy_greedy.py FOLDER PATCHES WIDTH KEEP BLEND

FOLDER has rows.f32 [PATCHES, WIDTH] and relevance.f32 [PATCHES]. Writes a line of JSON once each contestant has run, and one for every
line that it reads: {"contestant": "dpp" | "farthest", "order": "time" | "picks"}. Every answer tells the processor time that this
process has taken; the first one, by how many MB its dpp enlarged the process at its most.
"""

import json
import sys
import time

import numpy as np

LEAST_GAIN = 1e-5


def gram(x):
    """Cosines of all rows. numpy sees that both factors are one matrix, and computes half."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit @ unit.T


def dpp(x, g, blend, count):
    """Greedy MAP, L = (1 - blend + blend g_i g_j) cos_ij. Rows of L are made from those of the cosines as they are needed."""
    cosines = gram(x)
    gains = 1 - blend + blend * g * g
    least = LEAST_GAIN * gains.max()
    factors = np.empty((count, len(x)), np.float32)
    picked = []
    for k in range(count):
        j = int(np.argmax(gains))
        if not gains[j] > least:
            break
        factor = cosines[j] * (1 - blend + blend * g[j] * g)
        if k > 0:
            factor -= factors[:k, j] @ factors[:k]
        factor /= np.sqrt(gains[j])
        factors[k] = factor
        gains -= factor * factor
        gains[j] = -np.inf
        picked.append(j)
    rest = g * g
    rest[picked] = -np.inf
    return picked + np.argsort(-rest, kind="stable")[: count - len(picked)].tolist()


def farthest(x, count):
    """Farthest points without seeds: the next row's largest cosine with those before it is the smallest."""
    cosines = gram(x)
    np.fill_diagonal(cosines, -np.inf)
    closest = cosines.max(axis=1)
    picked = [int(np.argmin(closest))]
    closest = cosines[picked[0]].copy()
    closest[picked[0]] = np.inf
    while len(picked) < count:
        j = int(np.argmin(closest))
        picked.append(j)
        np.maximum(closest, cosines[j], out=closest)
        closest[j] = np.inf
    return picked


def resident(field):
    """MB of memory, as Linux counts it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024


def main(folder, patches, width, keep, blend):
    count = int(keep)
    x = np.fromfile(f"{folder}/rows.f32", np.float32).reshape(int(patches), int(width))
    g = np.fromfile(f"{folder}/relevance.f32", np.float32)
    runs = {
        "dpp": lambda: dpp(x, g, np.float32(blend), count),
        "farthest": lambda: farthest(x, count),
    }

    def answer(**fields):
        print(json.dumps(dict(fields, cpu_ms=time.process_time() * 1e3)), flush=True)

    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    runs["dpp"]()
    memory = resident("VmHWM") - before
    runs["farthest"]()
    answer(version=np.__version__, memory_mb=memory)
    for line in sys.stdin:
        order = json.loads(line)
        start = time.perf_counter()
        picks = runs[order["contestant"]]()
        ms = (time.perf_counter() - start) * 1e3
        answer(ms=ms, picks=picks if order["order"] == "picks" else [])


if __name__ == "__main__":
    main(*sys.argv[1:])
