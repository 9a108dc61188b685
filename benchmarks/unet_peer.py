"""Does the transformer learn faster than torchcfm's CIFAR-10 U-Net when both get the same processor time?

    FMNB_DATA_DIR=... python benchmarks/unet_peer.py [--minutes 10] [--n 500] [--steps 15] [--seeds 1] [--only ours ours_v unet_small unet] [--out cifar10]

Trainings one after the other, each for the same processor seconds of one thread (so that other work on the machine takes nothing from anybody), interrupted at will and resumed by the same command: `ours`, the transformer and recipe of profile
cifar10; `ours_v`, the same with a head that says the velocity instead of the image; `unet`, torchcfm's example for CIFAR-10 (35.7 M parameters, dropout 0.1, flips, independent coupling, Adam 2e-4, clip 1), in bf16 and channels-last as it is fastest here; `unet_small`, the same with a quarter of the channels, which costs about
as much a forward as ours. Their warm-up (5,000 steps) and EMA (0.9999) are longer than a short training: the warm-up becomes a tenth of the steps, and the best of the live weights and three averages is judged. They know no
classes, so ours is judged without a class as well as with it. Columns: images seen, Fréchet distance to the test images, bits per dimension of test images. More seeds later cost only themselves: the table has all seeds that were ever judged, up to `--seeds`, and what was published of them (reports/<profile>/weights/unet_peer) is not done again. With `--out profile` it goes to reports/<profile>/results/unet_peer_<minutes>.json."""
import argparse, statistics, time
import torch
from fmnb.core import Run, autocast, atomic_write, generator, load_tensors, load_weights, project_root, restored, save_tensors
from fmnb.data import batch_indices, load
from fmnb.dit import DiTConfig, compile_blocks
from fmnb.evaluation import balanced_labels, evenly, load_judge, sample
from fmnb.likelihood import image_bits, standard_error
from fmnb.training import State, TrainConfig, fit, guard, train, train_dit, train_state

CPU, OURS, EMAS = torch.device("cpu"), dict(ours="x1", ours_v="v"), {"model": .9999, "model@0.99": .99, "model@0.95": .95}

def unet(channels: int):
    "torchcfm's U-Net for CIFAR-10; called as our networks are, the label unread."
    from torchcfm.models.unet.unet import UNetModelWrapper
    class Net(UNetModelWrapper):
        def forward(self, x, t, y=None): return super().forward(t, x.contiguous(memory_format=torch.channels_last))
    return Net(dim=(3, 32, 32), num_res_blocks=2, num_channels=channels, channel_mult=[1, 2, 2, 2], num_heads=4, num_head_channels=64 * channels // 128, attention_resolutions="16", dropout=.1).to(memory_format=torch.channels_last)

def unet_state(channels: int, steps: int, seed: int = 0) -> State:
    torch.manual_seed(seed); net = unet(channels)
    return State(dict(model=net), dict(adam=torch.optim.Adam(net.parameters(), 2e-4)), EMAS, dict(channels=channels, steps=steps) | (dict(seed=seed) if seed else {}))

def train_unet(state, data, steps: int, seed: int = 0, batch: int = 128, micro: int = 32):
    "The example's loop: uniform t, straight paths, warm-up to a constant rate; yields a record a step."
    net, opt = state.modules["model"].train(), state.optimizers["adam"]
    while state.step < steps:
        gen = generator(seed, state.step); x1, _ = data.batch(batch_indices(len(data), state.step, batch, seed), gen); opt.zero_grad(); total = 0.
        x0, t = torch.randn(x1.shape, generator=gen), torch.rand(batch, generator=gen); torch.manual_seed(state.step + 10**6 * seed)            # of the dropout
        for i in range(0, batch, micro):
            a, b, s = x0[i:i + micro], x1[i:i + micro], t[i:i + micro, None, None, None]
            with autocast(CPU): v = net(s * b + (1 - s) * a, t[i:i + micro])
            loss = (v.float() - (b - a)).square().mean() * micro / batch; loss.backward(); total += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.).item(); guard(total, norm, state.step, t)
        state.scale_lr(min(1., (state.step + 1) / max(1, steps // 10))); opt.step(); state.step += 1; state.update_ema()
        yield dict(step=state.step, loss=total, grad_norm=norm)

def seconds_a_step(loop, n: int = 3) -> float:
    "Processor seconds of a step, the first ones left out."
    next(loop); next(loop); start = time.process_time()
    for _ in range(n): next(loop)
    return (time.process_time() - start) / n

def steps_in(name: str, plan, data, seconds: float) -> int:
    "How many steps `seconds` of processor time are: measured once, written to the file `plan` and kept for all seeds."
    if not plan.exists():
        if name in OURS: tried = train_state(data, config(name), settings(10**6)); compile_blocks(tried.modules["model"]); s = seconds_a_step(train(tried, data, settings(10**6)), 20)
        else: s = seconds_a_step(train_unet(unet_state(channels_of(name), 10**6), data, 10**6), 2)
        atomic_write(plan, str(max(10, round(seconds / s))))
    return int(plan.read_text())

def config(name: str) -> DiTConfig: return DiTConfig(size=32, channels=3, patch=4, width=256, depth=8, heads=4, predict=OURS[name])

def settings(steps: int, seed: int = 0) -> TrainConfig: return TrainConfig(steps=steps, batch=64, time="logit_normal", warmup=50, ema=min(.9995, 1 - 10 / steps), seed=seed)

def trained(name: str, folder: Run, data, steps: int, seed: int) -> tuple[list, int]:
    "Candidates (what weights, network), and images seen, of a training of `steps`."
    if name in OURS: return [("EMA", compile_blocks(train_dit(folder, data, config(name), settings(steps, seed), log_every=50)[0]))], steps * 64
    state = unet_state(channels_of(name), steps, seed).resume(folder/"train.state.safetensors"); fit(folder, state, train_unet(state, data, steps, seed), steps, 128, max(1, min(20, steps // 5)))
    candidates = [("live", state.modules["model"].state_dict()), *((f"EMA {d:g}", state.ema[k]) for k, d in EMAS.items())]
    return [(what, load_weights(unet(channels_of(name)), w, folder.path).eval()) for what, w in candidates], steps * 128

def channels_of(name: str) -> int: return dict(unet=128, unet_small=32)[name]

def judged(name: str, candidates, data, judge, args) -> dict:
    "FD and bits of the best of `candidates`, chosen by FD of a fifth of the samples; ours also with classes and guidance."
    labels, null = balanced_labels(args.n), torch.full((args.n,), 10)
    draw = lambda net, y, w=1.: sample(net, y, data.shape, args.steps, w, 10)[0]
    net = min(candidates, key=lambda c: judge(draw(c[1], null[:args.n // 5]), labels[:args.n // 5]).fd) if len(candidates) > 1 else candidates[0]
    out = dict(weights=net[0], fd=judge(draw(net[1], null), labels).fd, bits=bits(net[1], data, judge, args, 10)) | (dict(fd_guided=judge(draw(net[1], labels, 2.), labels).fd) if name in OURS else {})
    return out

def bits(net, data, judge, args, null: int):
    "Bits per dimension as notebook 33 codes images, here without their labels."
    return image_bits(net, *(some.subset(evenly(len(some), args.bits)) for some in (data, judge.reference)), batch=16, label=null)[0]

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter); names = [*OURS, "unet_small", "unet"]
    p.add_argument("--minutes", type=float, default=10); p.add_argument("--n", type=int, default=500); p.add_argument("--steps", type=int, default=15); p.add_argument("--bits", type=int, default=32)
    p.add_argument("--seeds", type=int, default=1); p.add_argument("--only", nargs="+", default=names, choices=names); p.add_argument("--out", default="", help="a profile, such as cifar10: the numbers are published in its report")
    args = p.parse_args(); torch.set_num_threads(1)
    data, judge = load("cifar10", "train"), load_judge("cifar10")[0]
    restored("unet_peer", profile := args.out or "peers"); run = Run("unet_peer", profile, minutes=args.minutes, n=args.n, steps=args.steps)
    folder = lambda name, seed: run/(f"{name}_{args.minutes:g}" + (f"_seed{seed}" if seed else ""))
    at = lambda name, seed: folder(name, seed)/f"judged_{args.n}_{args.steps}_{args.bits}_calibrated.safetensors"
    for seed in range(args.seeds):
        for name in args.only:
            if at(name, seed).exists(): continue
            own = Run("unet_peer", run.profile, path=folder(name, seed)); folder(name, 0).mkdir(exist_ok=True)
            candidates, seen = trained(name, own, data, steps_in(name, folder(name, 0)/"steps", data, 60 * args.minutes), seed)
            v, size = judged(name, candidates, data, judge, args), sum(q.numel() for q in candidates[0][1].parameters()); b = v.pop("bits")
            save_tensors(at(name, seed), dict(each=b.each), **v, bits_per_dim=b.value, size=size, images=seen); print(f"{name}, seed {seed}: FD {v['fd']:.1f}, {b.value:.3f} bits per dimension", flush=True)
    found = {name: {seed: load_tensors(at(name, seed)) for seed in range(args.seeds) if at(name, seed).exists()} for name in names}
    table(run, {name: f for name, f in found.items() if f}, args, judge); run.finish()
    if args.out: atomic_write(project_root()/"reports"/args.out/"results"/f"unet_peer_{args.minutes:g}.json", (run/"results.json").read_bytes())

def table(run: Run, found: dict, args, judge):
    "Rows, and their print, of what was judged: {contestant: {seed: (bits of each image, numbers)}}."
    def row(name, values, spread=None, **how):
        "Mean and deviation over seeds; of a single seed the spread that is given."
        if len(values) > 1: spread = statistics.stdev(values)
        return run.row(name, statistics.mean(values), spread=spread, seeds=len(values), **how), spread
    say = lambda v, s: f"{v:.4g}" + (f" ± {s:.2g}" if s else "")
    print(f"{args.minutes:g} minutes of one thread each, torch {torch.__version__}; {judge.extractor.metric(args.n)} with {args.steps} Euler steps\n\n| contestant | parameters | images | seeds | FD | FD, guided, with classes | bits/dim |\n|---|---|---|---|---|---|---|")
    run.row("minutes", args.minutes, unit="minutes", note="processor time of one thread that each contestant trained")
    for name, seeds in found.items():
        of = [meta for _, meta in seeds.values()]; by_seed = {k: meta["weights"] for k, (_, meta) in seeds.items()}
        kept = of[0]["weights"] if len(set(by_seed.values())) == 1 else "by seed " + ", ".join(f"{k}: {w}" for k, w in by_seed.items()); how = f"{of[0]['size']:,} parameters, {of[0]['images']:,} images in {args.minutes:g} minutes of one thread, {kept} weights"
        fd = {k: row(f"{name}_{k}", [m[k] for m in of], n=args.n, higher_is_better=False, note=f"{judge.extractor.metric(args.n)}, {args.steps} Euler steps, {'w=2 with classes' if k != 'fd' else 'no classes'}; {how}") for k in ("fd", "fd_guided") if k in of[0]}
        b = row(f"{name}_bits_per_dim", [m["bits_per_dim"] for m in of], spread=standard_error(next(iter(seeds.values()))[0]["each"]).item(), n=args.bits, unit="bits", higher_is_better=False, note=f"test images without their labels, to t = 0.995 of the calibrated velocity, then a logistic; {how}")
        run.row(f"{name}_images", of[0]["images"], unit="images", note=how)
        print(f"| {name} | {of[0]['size'] / 1e6:.1f} M | {of[0]['images']:,} | {len(of)} | {say(*fd['fd'])} | {say(*fd['fd_guided']) if 'fd_guided' in fd else ''} | {say(*b)} |", flush=True)
    for us in (n for n in found if n in OURS):
        for name in (n for n in found if n not in OURS):
            if not (more := [found[name][s][0]["each"] - found[us][s][0]["each"] for s in found[name] if s in found[us]]): continue
            v, spread = row(f"{name}_bits_over_{us}", [m.mean().item() for m in more], spread=standard_error(more[0]).item(), n=args.bits, unit="bits", higher_is_better=True, note="bits per dimension that it needs more for the same image, and its deviation over seeds, or of one seed its standard error over images")
            print(f"{name} needs {v:+.3f} ± {spread:.3f} bits per dimension more than {us} for the same image")

if __name__ == "__main__": main()
