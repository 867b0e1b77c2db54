"""PyTorch's side of `hadal bench`: the same ops, shapes and training steps, the same JSON lines.

    hadal bench ops --list --context gpu | python3 torch_bench.py ops --device cuda --precisions f32,tf32,bf16
    python3 torch_bench.py step --device cpu --only lenet

On a GPU each op's figure is that of a captured CUDA graph's replay, as on hadal's side; `--eager` launches one by one. Steps run in
each of `--modes`: eager; graph, the eager step captured; compile, by torch.compile; compile-graph, that captured. f32 is strict
(no TF32) unless tf32 is asked for; bf16 and f16 are tensors for the ops, autocast for the steps. `--layouts` tries both orders of memory.
"""

import argparse
import json
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn


def set_precision(name):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def best(work, device, block=0.05, blocks=7):
    def block_of(n):
        start = time.perf_counter()
        for _ in range(n):
            work()
        synchronize(device)
        return (time.perf_counter() - start) / n

    least = block_of(1)
    n = max(1, int(block / max(least, 1e-9)))
    return min([least] + [block_of(n) for _ in range(blocks)])


def clock(work, device, eager):
    """Seconds of one `work`."""
    for _ in range(3):
        work()
    synchronize(device)
    if device == "cuda" and not eager:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(10):
                work()
        return best(graph.replay, device) / 10
    return best(work, device)


def stem(x, w, g, b):
    return F.max_pool2d(F.relu(F.batch_norm(F.conv2d(x, w, None, 2, 3), None, None, g, b, True)), 3, 2, 1)


def forward_of(op, case):
    s, p = case["stride"], case["padding"]
    return {
        "Conv": lambda x, w: F.conv2d(x, w, None, s, p),
        "Entry": lambda x, w, v: F.conv2d(x, w, None, s, p) + F.conv2d(x, v, None, s),
        "Matmul": lambda a, b: a @ b,
        "Dense": lambda x, w, b: F.linear(x, w, b),
        "Relu": F.relu,
        "Sigmoid": torch.sigmoid,
        "Add": lambda a, b: a + b,
        "AddBias": lambda x, b: x + b,
        "Maximum": torch.maximum,
        "Cast": lambda x: x.to(torch.bfloat16 if x.dtype == torch.float32 else torch.float32),
        "BatchNorm": lambda x, g, b: F.batch_norm(x, None, None, g, b, True),
        "BatchNormRelu": lambda x, g, b: F.relu(F.batch_norm(x, None, None, g, b, True)),
        "BatchNormAddRelu": lambda x, g, b, r: F.relu(F.batch_norm(x, None, None, g, b, True) + r),
        "StemBlock": stem,
        "StemOps": stem,
        "MaxPool": lambda x: F.max_pool2d(x, 3, 2, 1),
        "AvgPool": lambda x: F.avg_pool2d(x, 2),
        "GlobalAvgPool": lambda x: x.mean((2, 3), keepdim=True),
        "Dropout": lambda x: F.dropout(x, 0.5, True),
        "Softmax": lambda x: F.softmax(x, -1),
        "SoftmaxCrossEntropy": lambda x, y: F.cross_entropy(x, y, reduction="none"),
    }[op]


def gradients_of(op, case):
    return {
        "Conv": [("dw", [1])] if case["shapes"][0][1] <= 4 else [("dx", [0]), ("dw", [1])],
        "Entry": [("dx", [0]), ("dw", [1, 2])],
        "Matmul": [("da", [0]), ("db", [1])],
        "Dense": [("dx", [0]), ("dw, db", [1, 2])],
        "BatchNorm": [("dx, dγ, dβ", [0, 1, 2])],
        "BatchNormRelu": [("dx, dγ, dβ", [0, 1, 2])],
        "BatchNormAddRelu": [("dx, dγ, dβ, dr", [0, 1, 2, 3])],
        "StemBlock": [("dw, dγ, dβ", [1, 2, 3])],
        "StemOps": [("dw, dγ, dβ", [1, 2, 3])],
        "Add": [],
        "Cast": [],
        "AddBias": [("db", [1])],
        "Maximum": [("da", [0])],
    }.get(op, [("dx", [0])])


def ops(a):
    torch.backends.cudnn.benchmark = True
    for case in map(json.loads, sys.stdin):
        op = case["op"]
        forward = forward_of(op, case)
        for precision in a.precisions.split(","):
            set_precision(precision)
            dtype = {"bf16": torch.bfloat16, "f16": torch.float16}.get(precision, torch.float32)
            x = []
            for i, shape in enumerate(case["shapes"]):
                t = torch.rand(shape, device=a.device)
                if op == "SoftmaxCrossEntropy" and i == 1:
                    t = t.long()
                elif not (op.startswith("BatchNorm") and i in (1, 2) or op.startswith("Stem") and i > 1):
                    t = t.to(dtype)
                if t.dim() == 4 and a.channels_last:
                    t = t.contiguous(memory_format=torch.channels_last)
                x.append(t)

            def emit(passed, seconds):
                print(json.dumps({"engine": "torch", "context": a.device, "name": case["name"], "pass": passed,
                                  "dtype": precision, "us": round(seconds * 1e6, 3)}), flush=True)

            with torch.no_grad():
                y = forward(*x)
                alone = clock(lambda: forward(*x), a.device, a.eager)
            emit("forward", alone)
            dy = torch.ones_like(y)
            for passed, of in gradients_of(op, case):
                leaves = [t.detach().requires_grad_(i in of) for i, t in enumerate(x)]
                wanted = [leaves[i] for i in of]
                both = clock(lambda: torch.autograd.grad(forward(*leaves), wanted, dy), a.device, a.eager)
                emit(passed, both - alone)


class Residual(nn.Module):
    def __init__(self, i, o, entry):
        super().__init__()
        self.conv1 = nn.Conv2d(i, o, 3, 2 if entry else 1, 1)
        self.conv2 = nn.Conv2d(o, o, 3, 1, 1)
        self.conv3 = nn.Conv2d(i, o, 1, 2) if entry else None
        self.bn1, self.bn2 = nn.BatchNorm2d(o), nn.BatchNorm2d(o)

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (self.conv3(x) if self.conv3 else x))


def resnet18():
    blocks = [Residual(64, 64, False), Residual(64, 64, False)]
    for i, o in ((64, 128), (128, 256), (256, 512)):
        blocks += [Residual(i, o, True), Residual(o, o, False)]
    return nn.Sequential(nn.Conv2d(1, 64, 7, 2, 3), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1), *blocks,
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10))


def lenet(act):
    return nn.Sequential(nn.Conv2d(1, 6, 5), act(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), act(), nn.MaxPool2d(2), nn.Flatten(),
                         nn.Linear(256, 120), act(), nn.Linear(120, 84), act(), nn.Linear(84, 10))


def mlp():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 256), nn.ReLU(),
                         nn.Dropout(0.5), nn.Linear(256, 10))


NETS = {"resnet18": (resnet18, 0.05, 96), "lenet_relu": (lambda: lenet(nn.ReLU), 0.1, 28),
        "lenet_sigmoid": (lambda: lenet(nn.Sigmoid), 0.9, 28), "mlp": (mlp, 0.5, 28)}


def captured(one):
    """A replay of one step."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            one()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        one()
    return graph.replay


def measure_step(a, name, precision, layout, mode):
    make, lr, side = NETS[name]
    set_precision(precision)
    torch.manual_seed(0)
    net = make().to(a.device)
    x = torch.rand(a.batch, 1, side, side, device=a.device)
    if layout == "nhwc":
        net, x = net.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
    y = torch.randint(0, 10, (a.batch,), device=a.device)
    optimizer = torch.optim.SGD(net.parameters(), lr, fused=True if a.device == "cuda" else None)
    mixed = precision in ("bf16", "f16")
    forward = torch.compile(net) if mode.startswith("compile") else net

    def one():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(a.device, torch.bfloat16 if precision == "bf16" else torch.float16, enabled=mixed):
            loss = F.cross_entropy(forward(x), y)
        loss.backward()
        optimizer.step()

    start = time.perf_counter()
    one()
    synchronize(a.device)
    first = time.perf_counter() - start
    work = captured(one) if mode.endswith("graph") else one
    for _ in range(3):
        work()
    seconds = best(work, a.device, 0.01 if a.quick else 1.0, 1 if a.quick else 7)
    print(json.dumps({"engine": "torch", "context": a.device, "model": name, "what": "train", "batch": a.batch, "dtype": precision,
                      "mode": mode, "channels_last": layout == "nhwc", "first_step_s": round(first, 3),
                      "best_ms": round(seconds * 1e3, 3), "best_img_s": round(a.batch / seconds, 1)}), flush=True)


def step(a):
    torch.backends.cudnn.benchmark = True
    modes = ["eager"] if a.eager else a.modes.split(",") if a.modes else \
        ["eager", "graph", "compile", "compile-graph"] if a.device == "cuda" else ["eager"]
    layouts = a.layouts.split(",") if a.layouts else ["nhwc"] if a.channels_last else ["nchw"]
    for name in NETS:
        if a.only not in name:
            continue
        for precision in a.precisions.split(","):
            for layout in layouts if NETS[name][0] is not mlp else layouts[:1]:
                for mode in modes:
                    torch.compiler.reset()
                    try:
                        measure_step(a, name, precision, layout, mode)
                    except Exception as e:  # What this PyTorch cannot do is left out, and said so.
                        print(f"torch: {name} {precision} {layout} {mode}: {e}".splitlines()[0], file=sys.stderr, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["ops", "step"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precisions", default="f32")
    parser.add_argument("--only", default="")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--modes", default="", help="of the steps; default: all four on a GPU, eager on the CPU")
    parser.add_argument("--layouts", default="", help="of the steps: nchw, nhwc or both; default: as --channels-last says")
    parser.add_argument("--quick", action="store_true", help="small and rough: does everything work?")
    args = parser.parse_args()
    (ops if args.what == "ops" else step)(args)
