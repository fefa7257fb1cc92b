"""The same pruning head in PyTorch, timed on the GPU that desap-cuda-bench was timed on.

    python3 bench/peers/torch_head.py torch.json                      # measure
    python3 bench/peers/torch_head.py torch.json --merge cuda.json    # measure, then the ratios to desap-cuda-bench's results
    python3 bench/peers/torch_head.py torch.json --only-merge cuda.json

Eager (F.scaled_dot_product_attention, every step in the given type) and torch.compile(mode="max-autotune", fullgraph=True), both
replayed as CUDA graphs where that is said ("graph"); eager is also timed launch by launch, which is what eager means. Hidden
states are on the GPU in the type that is measured; several sets of inputs take turns, more than the L2 cache holds. Needs
PyTorch 2.2 or later with CUDA, and torch_model.py beside it; writes nothing but the named file.
"""

import argparse
import datetime
import json
import statistics
import subprocess
import sys
import time

RUNS = 60
ROTATED_BYTES = 160 << 20

# rows, width, heads, projection dim, class token, text tokens, keep; batches
SHAPES = [
    (dict(rows=577, width=1024, heads=16, projection_dim=768, class_token=True, text_tokens=30, keep=64), [1, 5, 8, 64]),
    (dict(rows=257, width=1024, heads=16, projection_dim=768, class_token=True, text_tokens=30, keep=64), [8]),
    (dict(rows=4096, width=1280, heads=16, projection_dim=768, class_token=False, text_tokens=30, keep=455), [1]),
    (dict(rows=16384, width=1280, heads=16, projection_dim=768, class_token=False, text_tokens=30, keep=1820), [1]),
]
# desap-cuda-bench's precision: PyTorch's type, and whether float32 products may use TF32
TYPES = {"fp16": ("float16", False), "bf16": ("bfloat16", False), "fp32": ("float32", False), "tf32": ("float32", True)}


def shape_name(shape):
    return f"{shape['rows']}x{shape['width']}"


def make_weights(shape, seed=1):
    """Float64, on the CPU. Variance 1 / D: activations keep their size."""
    g = torch.Generator().manual_seed(seed)
    d, e = shape["width"], shape["projection_dim"]

    def normal(*size, scale):
        return torch.randn(*size, generator=g, dtype=torch.float64) * scale

    w = {}
    for name in ("ln1", "post_ln"):
        w[f"{name}.weight"] = 1 + normal(d, scale=0.1)
        w[f"{name}.bias"] = normal(d, scale=0.1)
    for name in ("q", "k", "v", "out"):
        w[f"{name}.weight"] = normal(d, d, scale=d**-0.5)
        w[f"{name}.bias"] = normal(d, scale=0.1)
    w["visual_projection.weight"] = normal(e, d, scale=d**-0.5)
    return w


def make_inputs(shape, batch, seed):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(batch, shape["rows"], shape["width"], generator=g, dtype=torch.float32)
    text = torch.randn(batch, shape["text_tokens"], shape["projection_dim"], generator=g, dtype=torch.float32)
    return hidden, text


def check(shape, weights, result, device):
    """Largest errors relative to the largest value, against float64, and how many of the kept patches differ."""
    hidden, text, outputs = result
    exact = Head(shape, weights, torch.float64, device)(hidden.double(), text.double())
    _, kept, _, _, task, saliency, embeddings = outputs

    def error(actual, expected):
        return float((actual.double() - expected).abs().max() / expected.abs().max())

    differ = [len(set(a) - set(b)) for a, b in zip(kept.tolist(), exact[1].tolist())]
    return {
        "embeddings_error": error(embeddings, exact[6]),
        "task_error": error(task, exact[4]),
        "saliency_error": error(saliency, exact[5]),
        "kept_differ": sum(differ) / len(differ),
    }


def events(body, passes, runs=RUNS):
    """Microseconds of a pass by CUDA events around `body`, which makes `passes` of them."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def once(rounds):
        begin.record()
        for _ in range(rounds):
            body()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) * 1e3 / (rounds * passes)

    once(1)
    rounds = max(1, min(64, int(5000 / max(once(1), 1.0)) // passes))
    once(rounds)
    return [once(rounds) for _ in range(runs)]


def captured(function, inputs):
    """One CUDA graph per set of inputs, and the outputs that the first leaves."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            function(*inputs[0])
    torch.cuda.current_stream().wait_stream(side)
    graphs, kept = [], []
    for one in inputs:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept.append(function(*one))
        graphs.append(graph)
    return graphs, kept


class Results:
    def __init__(self):
        self.rows = []

    def add(self, samples, flops=0.0, size=0.0, **fields):
        samples = sorted(samples)
        median = statistics.median(samples)
        row = dict(fields, median_us=median, p10_us=samples[len(samples) // 10], p90_us=samples[-1 - len(samples) // 10], runs=len(samples))
        if flops:
            row["tflops"] = flops / median / 1e6
        if size:
            row["gb_per_s"] = size / median / 1e3
        self.rows.append(row)
        print(" ".join(f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()), flush=True)


def measure_head(results, shape, batch, precision, device):
    name, tf32 = TYPES[precision]
    kind = getattr(torch, name)
    torch.backends.cuda.matmul.allow_tf32 = tf32
    weights = make_weights(shape)
    size = batch * shape["rows"] * shape["width"] * torch.empty((), dtype=kind).element_size()
    sets = max(1, min(16, ROTATED_BYTES // size + 1))
    inputs = [tuple(x.to(device=device, dtype=kind) for x in make_inputs(shape, batch, seed)) for seed in range(sets)]
    eager = Head(shape, weights, kind, device)
    common = dict(name="head", shape=shape_name(shape), batch=batch, precision=precision, type=name)

    def each(function):
        def body():
            for one in inputs:
                function(*one)

        return body

    def record(mode, samples, outputs):
        small = batch * shape["rows"] <= 8 * 577  # float64 on the GPU is slow
        accuracy = check(shape, weights, (*inputs[0], outputs), device) if small else {}
        results.add(samples, mode=mode, **{"from": "device"}, **common, **accuracy)

    record("eager", events(each(eager), sets), eager(*inputs[0]))

    graphs, outputs = captured(eager, inputs)

    def replay(list_):
        def body():
            for graph in list_:
                graph.replay()

        return body

    record("eager, graph", events(replay(graphs), sets), outputs[0])
    del graphs, outputs

    # Kernels of max-autotune, without its own graphs: these would copy the inputs in. Captured by hand like the others.
    torch._dynamo.reset()
    compiled = torch.compile(eager, mode="max-autotune-no-cudagraphs", fullgraph=True, dynamic=False)
    graphs, outputs = captured(compiled, inputs)
    record("compiled, graph", events(replay(graphs), sets), outputs[0])
    del graphs, outputs

    torch._dynamo.reset()
    compiled = torch.compile(eager, mode="max-autotune", fullgraph=True, dynamic=False)
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        outputs = [x.clone() for x in compiled(*inputs[0])]

    def with_own_graphs():
        for one in inputs:
            torch.compiler.cudagraph_mark_step_begin()
            compiled(*one)

    record("compiled, own graphs", events(with_own_graphs, sets), outputs)
    torch._dynamo.reset()
    torch.cuda.empty_cache()


def measure_rates(results, device):
    n = 8192
    for precision in ("fp16", "bf16"):
        kind = getattr(torch, TYPES[precision][0])
        a, b = (torch.randn(n, n, device=device, dtype=torch.float32).to(kind) for _ in range(2))
        out = torch.empty(n, n, device=device, dtype=kind)
        samples = events(lambda: torch.matmul(a, b, out=out), 1)
        results.add(samples, flops=2.0 * n**3, name="matrix", shape=str(n), batch=1, precision=precision, mode="eager", **{"from": "device"})
    size = 256 << 20
    host = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    gpu = torch.empty(size, dtype=torch.uint8, device=device)
    samples = events(lambda: gpu.copy_(host, non_blocking=True), 1)
    results.add(samples, size=float(size), name="pinned copy", shape="256 MiB", batch=1, precision="", mode="eager", **{"from": "host"})


def gpu_state():
    query = "driver_version,clocks.sm,clocks.max.sm,clocks.mem,power.draw,temperature.gpu"
    try:
        command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return ""


def measure(path):
    device = torch.device("cuda", 0)
    torch.cuda.set_device(device)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    results, before = Results(), gpu_state()
    started = time.monotonic()

    def save():
        major, minor = torch.cuda.get_device_capability(device)
        report = dict(
            gpu=torch.cuda.get_device_name(device),
            capability=f"{major}.{minor}",
            torch=torch.__version__,
            runtime_cuda=torch.version.cuda,
            state_before=before,
            state_after=gpu_state(),
            date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - started),
            results=results.rows,
        )
        with open(path, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")
        return report

    with torch.inference_mode():
        measure_rates(results, device)
        for precision in TYPES:
            for shape, batches in SHAPES:
                for batch in batches:
                    try:
                        measure_head(results, shape, batch, precision, device)
                    except torch.cuda.OutOfMemoryError:
                        print(f"out of memory: {shape_name(shape)} b{batch} {precision}", flush=True)
                        torch.cuda.empty_cache()
                    save()
    return save()


# What has to be reached on an H200: name, our value, must, reach for, whether smaller is better
def targets(ours, peer):
    def find(rows, **fields):
        found = [row for row in rows["results"] if all(row.get(key) == value for key, value in fields.items())]
        return found[0] if found else None

    def ours_us(**fields):
        row = find(ours, **fields)
        return row and row["median_us"]

    def best_us(modes, **fields):
        rows = [row for row in peer["results"] if row.get("mode") in modes and all(row.get(k) == v for k, v in fields.items())]
        return min((row["median_us"] for row in rows), default=None)

    def ratio(a, b):
        return a / b if a and b else None

    head = dict(name="head", shape="577x1024", precision="fp16")
    device = {"from": "device"}
    b1, b64 = ours_us(**head, **device, batch=1), ours_us(**head, **device, batch=64)
    compiled = ("compiled, graph", "compiled, own graphs")
    rates = [row["tflops"] for rows in (ours, peer) for row in rows["results"] if row["name"] == "matrix" and row["precision"] == "fp16"]
    rate_b64 = find(ours, **head, **device, batch=64)
    # The copy may be timed twice; the rate is the faster.
    copies = [row["gb_per_s"] for rows in (ours, peer) for row in rows["results"] if row["name"] == "pinned copy"]
    stream = find(ours, name="stream", shape="577x1024", precision="fp16", batch=64, **{"from": "pinned"})
    n16384 = ours_us(name="head", shape="16384x1280", precision="fp16", **device)
    return [
        ("device time, b1, us", b1, 30, 20, True),
        ("b1 against torch.compile with graphs, times", ratio(best_us(compiled, **head, batch=1), b1), 3.5, 5.5, False),
        ("b1 against eager, times", ratio(best_us(("eager",), **head, batch=1), b1), 9, 14, False),
        ("b64 against torch.compile with graphs, times", ratio(best_us(compiled, **head, batch=64), b64), 1.5, 1.8, False),
        ("b64, share of the 8192^3 rate", ratio(rate_b64 and rate_b64["tflops"], max(rates, default=None)), 0.60, 0.70, False),
        ("host to host, b1, us", ours_us(**head, batch=1, **{"from": "pinned"}), 150, 100, True),
        ("b64 stream, share of the pinned copy's rate", ratio(stream and stream["gb_per_s"], max(copies, default=None)), 0.85, 0.95, False),
        ("fp32, device time, b1, us", ours_us(name="head", shape="577x1024", precision="fp32", batch=1, **device), 45, 35, True),
        ("N 16384, ms", n16384 and n16384 / 1e3, 7, 5.3, True),
    ]


def merge(ours, peer):
    if ours["gpu"] != peer["gpu"]:
        sys.exit(f"not the same GPU: {ours['GPU']} and {peer['GPU']}")
    print(f"\n{ours['GPU']}: targets, fp16 unless it is said")
    for name, value, must, reach, smaller in targets(ours, peer):
        if value is None:
            print(f"  {name:50} not measured")
            continue
        met = [value <= limit if smaller else value >= limit for limit in (must, reach)]
        verdict = "reached" if met[1] else "must met" if met[0] else "NOT MET"
        print(f"  {name:50} {value:9.3f}   must {must}, reach for {reach}: {verdict}")
    print("\nthe head beside PyTorch's, us")
    for row in ours["results"]:
        if row["name"] != "head" or row["from"] != "device":
            continue
        same = [p for p in peer["results"] if all(p.get(key) == row[key] for key in ("name", "shape", "batch", "precision"))]
        others = ", ".join(f"{p['mode']} {p['median_us']:.1f} ({p['median_us'] / row['median_us']:.2f}x)" for p in same)
        print(f"  {row['shape']} b{row['batch']} {row['precision']}: {row['median_us']:.1f}; {others or 'not measured'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("results", help="file to write, or with --only-merge to read")
    parser.add_argument("--merge", metavar="FILE", help="desap-cuda-bench's results: print the ratios")
    parser.add_argument("--only-merge", metavar="FILE", help="the same without measuring")
    arguments = parser.parse_args()
    if arguments.only_merge:
        with open(arguments.results) as file:
            peer = json.load(file)
    else:
        global torch, Head
        import torch
        from torch_model import Head

        if not torch.cuda.is_available():
            sys.exit("no CUDA GPU that PyTorch can use")
        peer = measure(arguments.results)
    path = arguments.merge or arguments.only_merge
    if path:
        with open(path) as file:
            merge(json.load(file), peer)


if __name__ == "__main__":
    main()
