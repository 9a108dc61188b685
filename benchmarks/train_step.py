"""What does a training step of a diffusion transformer cost on a CPU? Ours beside the paper's architecture in plain PyTorch (SiT-like) and diffusers' `DiTTransformer2DModel`.

    python benchmarks/train_step.py [--repeats 10] [--threads 1] [--shapes S64 S256 cifar] [--clock wall] [--regional] [--out cifar10]

Every contestant is a process of its own, with its own library's defaults; the processes take turns, two steps at a time of which the second counts (after ten idle seconds the first of ours took half as long again), so that what else the machine does meets all of them alike. The peers run as their users run them
(fp32, eager) and at their best (bf16 autocast where the processor multiplies in it, fused AdamW, the whole model compiled; `--regional` compiles block by block, which builds much faster). Columns, in images/s, medians over the repeats: the whole step (batch, forward, backward, clip, optimizer, EMA:
ours with AdamW like the peers, and with Muon, our default), forward and backward alone, and sampling (forward without gradients, conditional and unconditional in one batch). `--clock cpu` counts the process's own seconds: for one thread on a shared core.
The bars compare ours with the fastest configuration of the peers, and each rate is also given as its share of what products of matrices alone reach here in the same precision: where the peers' best is at .7 of that, nobody can be 1.5 times as fast.
With `--out profile` the numbers go to reports/<profile>/results/train_step_<processor>.json, a file a kind of processor, which notebook 64 draws."""
import argparse, contextlib, math, multiprocessing as mp, os, re, statistics, time
import torch, torch.nn as nn, torch.nn.functional as F
from fmnb.core import Run, atomic_write, autocast, autocast_dtype, cpu_name, project_root

CPU = torch.device("cpu")
FAST = autocast_dtype(CPU)           # what ours and the peers at their best compute in
SHAPES = dict(S64=dict(size=32, width=384, depth=12, heads=6, batch=64), S256=dict(size=64, width=384, depth=12, heads=6, batch=16), cifar=dict(size=32, width=256, depth=8, heads=4, batch=64),
              tiny=dict(size=16, width=64, depth=2, heads=2, batch=8))
PATCH, CLASSES = 4, 10
BEST = f"{'bf16' if FAST == torch.bfloat16 else 'fp32'} compiled"
NAMES = {("fmnb", "adamw"): "fmnb, AdamW", ("fmnb", "muon"): "fmnb, Muon", ("sit", False): "SiT, fp32 eager", ("sit", True): f"SiT, {BEST}", ("diffusers", False): "diffusers, fp32 eager", ("diffusers", True): f"diffusers, {BEST}"}
CLOCKS = dict(wall=time.perf_counter, cpu=time.process_time)
WHAT = dict(step=3, both=3, sampling=2)        # what is timed, and how many forwards' FLOPs an image costs: a backward counts two, guidance two

class SiTBlock(nn.Module):
    "adaLN-Zero block as in Peebles & Xie 2022, section 3.2: LayerNorm, softmax attention, GELU."
    def __init__(self, C, heads):
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(C, eps=1e-6, elementwise_affine=False)
        self.qkv, self.proj, self.up, self.down, self.ada = nn.Linear(C, 3 * C), nn.Linear(C, C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C), nn.Linear(C, 6 * C)
    def forward(self, h, c):
        s1, k1, g1, s2, k2, g2 = self.ada(F.silu(c))[:, None].chunk(6, -1)
        q, k, v = self.qkv(self.norm(h) * (1 + k1) + s1).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = h + g1 * self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return h + g2 * self.down(F.gelu(self.up(self.norm(h) * (1 + k2) + s2), approximate="tanh"))

class SiT(nn.Module):
    "The paper's transformer with a velocity at the end."
    def __init__(self, size, width, depth, heads):
        super().__init__()
        from fmnb.dit import sincos_2d
        self.embed, self.label, self.time = nn.Conv2d(3, width, PATCH, PATCH), nn.Embedding(CLASSES + 1, width), nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks, self.norm, self.ada, self.head = nn.ModuleList(SiTBlock(width, heads) for _ in range(depth)), nn.LayerNorm(width, eps=1e-6, elementwise_affine=False), nn.Linear(width, 2 * width), nn.Linear(width, 3 * PATCH ** 2)
        self.register_buffer("pos", sincos_2d(size // PATCH, width)); self.register_buffer("freqs", torch.exp(-math.log(1e4) * torch.arange(128) / 128))
    def forward(self, x, t, y):
        a = 1000 * t[:, None] * self.freqs
        h, c = self.embed(x).flatten(2).mT + self.pos, self.time(torch.cat([a.cos(), a.sin()], -1)) + self.label(y)
        for block in self.blocks: h = block(h, c)
        shift, scale = self.ada(F.silu(c))[:, None].chunk(2, -1)
        return F.fold(self.head(self.norm(h) * (1 + scale) + shift).mT, x.shape[-2:], PATCH, stride=PATCH)

class Diffusers(nn.Module):
    "diffusers' DiT, called as ours is."
    def __init__(self, size, width, depth, heads):
        from diffusers import DiTTransformer2DModel
        super().__init__(); self.net = DiTTransformer2DModel(heads, width // heads, 3, 3, depth, sample_size=size, patch_size=PATCH, num_embeds_ada_norm=CLASSES, norm_num_groups=1)
        self.blocks = self.net.transformer_blocks
    def forward(self, x, t, y): return self.net(x, 1000 * t, y, return_dict=False)[0]

def peer(kind, best, shape, batch, regional):
    "The three things that are timed, for a peer: a step, forward and backward, sampling."
    model = dict(sit=SiT, diffusers=Diffusers)[kind](**shape); opt = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=0., fused=best)
    ema, net = [p.detach().clone() for p in model.parameters()], model
    if best and regional:
        for b in model.blocks: b.compile(dynamic=False)
    elif best: net = torch.compile(model, dynamic=False)
    cast = lambda: autocast(CPU) if best else contextlib.nullcontext()
    x1, y, size = torch.randn(batch, 3, shape["size"], shape["size"]), torch.randint(0, CLASSES, (batch,)), shape["size"]
    def both():
        t, x0 = torch.rand(batch), torch.randn_like(x1); s = t[:, None, None, None]; opt.zero_grad(set_to_none=True)
        with cast(): loss = (net(s * x1 + (1 - s) * x0, t, y).float() - (x1 - x0)).square().mean()
        loss.backward()
    def step():
        both(); nn.utils.clip_grad_norm_(model.parameters(), 1.); opt.step()
        with torch.no_grad(): torch._foreach_lerp_(ema, list(model.parameters()), 1e-3)
    x2, t2, y2 = torch.randn(2 * batch, 3, size, size), torch.rand(2 * batch), torch.randint(0, CLASSES, (2 * batch,))
    @torch.no_grad()
    def sample():
        with cast(): net(x2, t2, y2)
    return step, both, sample

def ours(optimizer, shape, batch):
    "The same three of fmnb: `train` itself for the step."
    from fmnb.data import ImageSet
    from fmnb.dit import DiTConfig, compile_blocks
    from fmnb.training import TrainConfig, fm_loss, generator, train, train_state
    data = ImageSet(torch.randint(0, 256, (256, 3, shape["size"], shape["size"]), dtype=torch.uint8), torch.randint(0, CLASSES, (256,)), [str(i) for i in range(CLASSES)], flips=True)
    cfg = TrainConfig(steps=10**6, batch=batch, optimizer=optimizer); state = train_state(data, DiTConfig(channels=3, patch=PATCH, num_classes=CLASSES, **shape), cfg)
    model, loop, gen = compile_blocks(state.modules["model"]), train(state, data, cfg), generator(0)
    x1, y = data.batch(torch.arange(batch))
    def both():
        for o in state.optimizers.values(): o.zero_grad(set_to_none=True)
        with autocast(CPU): loss, _ = fm_loss(model, x1, y, cfg, gen)
        loss.mean().backward()
    x2, t2, y2 = torch.randn(2 * batch, *x1.shape[1:]), torch.rand(2 * batch), torch.cat([y, torch.full_like(y, CLASSES)])
    @torch.no_grad()
    def sample():
        with autocast(CPU): model(x2, t2, y2)
    return lambda: next(loop), both, sample

def contestant(pipe, name, shape, batch, threads, regional, clock):
    "A process that does and times what it is told."
    torch.set_num_threads(threads); torch.manual_seed(0)
    kind, best = name; now = CLOCKS[clock]
    works = ours(best, shape, batch) if kind == "fmnb" else peer(kind, best, shape, batch, regional)
    for work in works: work(); work()
    pipe.send("ready")
    while (i := pipe.recv()) is not None: works[i](); start = now(); works[i](); pipe.send(now() - start)        # once to wake up: a virtual machine's host takes what sleeps for cold

def measure(args, shape, batch):
    "Images/s of every contestant: {name: [step, forward and backward, sampling]}."
    ctx, ends = mp.get_context("spawn"), {}
    for name in NAMES:
        end, other = ctx.Pipe(); ctx.Process(target=contestant, args=(other, name, shape, batch, args.threads, args.regional, args.clock), daemon=True).start(); ends[name] = end; other.close(); end.recv()
    times = {name: ([], [], []) for name in NAMES}
    for _ in range(args.repeats):
        for i in range(3):
            for name, end in ends.items(): end.send(i); times[name][i].append(end.recv())
    for end in ends.values(): end.send(None)
    return {name: [batch / statistics.median(t) for t in ts] for name, ts in times.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=int, default=10); p.add_argument("--threads", type=int, default=torch.get_num_threads()); p.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["S64", "S256", "cifar"])
    p.add_argument("--clock", choices=list(CLOCKS), default="wall"); p.add_argument("--regional", action="store_true")
    p.add_argument("--out", default="", help="a profile, such as cifar10: the numbers are published in its report")
    args = p.parse_args(); torch.set_num_threads(args.threads)
    from fmnb.dit import DiTConfig, flops
    from fmnb.training import matmul_rate
    cpu = cpu_name().rsplit(" x", 1)[0]; file, run = f"train_step_{re.sub('[^a-z0-9]+', '_', cpu.lower())}", Run("train_step", args.out or "peers", threads=args.threads, repeats=args.repeats, clock=args.clock, regional=args.regional, **({"GLIBC_TUNABLES": t} if (t := os.environ.get("GLIBC_TUNABLES")) else {}))
    measured, peak = {}, {torch.bfloat16: 0., torch.float32: 0.}
    for key in args.shapes:
        for d in peak: peak[d] = max(peak[d], *(matmul_rate(1., d, device=CPU, now=CLOCKS[args.clock]) for _ in range(3)))       # the best: what they can reach, not what they got beside a neighbour
        shape = dict(SHAPES[key]); measured[key] = measure(args, shape, shape.pop("batch"))
    how = f"{args.threads} thread(s), medians of the second steps of {args.repeats} turns, {args.clock} clock, peers compiled {'block by block' if args.regional else 'whole'}"
    print(f"{cpu}, torch {torch.__version__}, {how}; products of matrices alone: bf16 {peak[torch.bfloat16] / 1e9:.0f}, fp32 {peak[torch.float32] / 1e9:.0f} GFLOP/s\n\nimages/s (fmnb with AdamW over it; share of the matrix products' rate)\n")
    print("| shape | contestant | step | forward + backward | sampling |\n|---|---|---|---|---|")
    for dtype, rate in peak.items(): run.row(f"matmul_{str(dtype).split('.')[1]}", rate / 1e9, unit="GFLOP/s", higher_is_better=True, note=f"products of 1024 x 1024 matrices, {args.threads} thread(s), the best second of {3 * len(args.shapes)}")
    for key in args.shapes:
        shape, m = dict(SHAPES[key]), measured[key]; batch, us = shape.pop("batch"), m["fmnb", "adamw"]
        cost, what = flops(DiTConfig(channels=3, patch=PATCH, num_classes=CLASSES, overlap=False, **shape))["total"], f"{shape['depth']} x {shape['width']}, {(shape['size'] // PATCH) ** 2} tokens, batch {batch}"
        for kind, k in WHAT.items(): run.row(f"{key}_limit_{kind}", peak[FAST] / (k * cost), unit="images/s", note=f"{what}, if matrix products in {BEST[:4]} were all")
        for name, rates in m.items():
            share = [r * k * cost / peak[torch.float32 if name[1] is False else FAST] for r, k in zip(rates, WHAT.values())]
            print(f"| {key}: {what} | {NAMES[name]} | " + " | ".join(f"{r:.1f} ({u / r:.2f}; {s:.2f})" for r, u, s in zip(rates, us, share)) + " |")
            for kind, r, s in zip(WHAT, rates, share): run.row(f"{key}_{'_'.join(re.findall('[a-z0-9]+', NAMES[name].lower()))}_{kind}", r, unit="images/s", higher_is_better=True, note=f"{what}; {s:.2f} of the rate of matrix products; {how}")
        worst = lambda i, best: us[i] / max(r[i] for (kind, b), r in m.items() if kind != "fmnb" and b <= best)          # without bf16 eager may be the best
        bars = dict(step_over_default=(worst(0, False), 3), step_over_best=(worst(0, True), 1.5), sampling_over_best=(worst(2, True), 1.5))
        for k, (v, b) in bars.items(): run.row(f"{key}_{k}", v, unit="x", higher_is_better=True, note=f"ours over the faster peer, {what}; wanted: {b}")
        print(f"| {key} | **bars** | " + "; ".join(f"{k.replace('_', ' ')}: {v:.2f} {'>=' if v >= b else '< (missed)'} {b}" for k, (v, b) in bars.items()) + " | | |", flush=True)
    run.finish()
    if args.out: atomic_write(project_root()/"reports"/args.out/"results"/f"{file}.json", (run/"results.json").read_bytes())

if __name__ == "__main__": main()
