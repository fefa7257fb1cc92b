"""The pruning head in PyTorch on the CPU, as a contestant of `npm run bench:head -- --python`, which starts this.

    python3 bench/peers/torch_cpu.py FOLDER THREADS TYPE...

FOLDER has head.safetensors and question.safetensors (float32: hidden, text; metadata: keep); a type is float32 or bfloat16. Writes
a line of JSON when all is compiled and warm, and one for every line that it reads: {"contestant": NAME, "order": "time" |
"outcome"}. `time` runs once. Every answer tells the processor time that this process has taken: it is not foreign load.

Compiled: torch.compile with frozen weights, which it packs for the CPU's libraries. mode="max-autotune" was no faster.
"""

import json
import struct
import sys
import time

import torch
import torch._inductor.config
from torch_model import Head

# Threads of OpenMP spin for some time after each run. The next contestant shall not meet them.
PAUSE_S = 0.02


def read_tensors(path):
    """Tensors and metadata of a .safetensors file of float32."""
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = bytearray(file.read())
    metadata = header.pop("__metadata__")

    def tensor(entry):
        begin, end = entry["data_offsets"]
        return torch.frombuffer(data, dtype=torch.float32, count=(end - begin) // 4, offset=begin).view(entry["shape"])

    return {name: tensor(entry) for name, entry in header.items()}, metadata


def contestants(folder, types):
    """Functions of no arguments by name; each gives [merged tokens, kept, nearest, ...]."""
    weights, about = read_tensors(f"{folder}/head.safetensors")
    question, asked = read_tensors(f"{folder}/question.safetensors")
    inputs = question["hidden"].unsqueeze(0), question["text"].unsqueeze(0)
    config = json.loads(about["desap.head"])
    shape = dict(
        width=question["hidden"].shape[1], heads=config["heads"], keep=int(asked["keep"]), class_token=config["cls"]
    )
    found = {}
    for name in types:
        eager = Head(shape, weights, getattr(torch, name), torch.device("cpu"))
        compiled = torch.compile(eager, fullgraph=True, dynamic=False)
        for mode, head in (("eager", eager), ("compiled", compiled)):
            found[f"{mode}, {name}"] = lambda head=head: head(*inputs)
    return found


def timed(run):
    start = time.perf_counter()
    run()
    taken = {"ms": (time.perf_counter() - start) * 1e3}
    time.sleep(PAUSE_S)
    return taken


def outcome(run):
    tokens, kept, nearest = run()[:3]
    return {"indices": kept[0].tolist(), "assignment": nearest[0].tolist(), "tokens": tokens[0].flatten().tolist()}


def main(folder, threads, *types):
    answers, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer

    def answer(**fields):
        print(json.dumps(dict(fields, cpu_ms=time.process_time() * 1e3)), file=answers, flush=True)

    torch.set_num_threads(int(threads))
    torch._inductor.config.freezing = True
    with torch.no_grad():
        runs = contestants(folder, types)
        for run in runs.values():
            for _ in range(3):
                run()
        answer(version=torch.__version__, contestants=list(runs))
        for line in sys.stdin:
            order = json.loads(line)
            answer(**{"time": timed, "outcome": outcome}[order["order"]](runs[order["contestant"]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
