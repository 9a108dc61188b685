"""How good are the averages that a training of 33_scaled_dit has left on its way? The page itself judges them only at its end; this looks at a training that still runs, or that was stopped.

    FMNB_DATA_DIR=... python benchmarks/snapshots.py runs/cifar10/33_scaled_dit [--n 0] [--out cifar10 --name head_v]

A line for each ema_*.safetensors in the folder: images seen, Fréchet distance of `--n` samples (0: the run's `n_snap`) drawn as the page draws them (the run's own seed, steps and guidance), judge accuracy and recall. With `--out profile --name x` the numbers go to reports/<profile>/results/x.json."""
import argparse, json
from pathlib import Path
import torch
from fmnb.core import Run, UserError, atomic_write, command, project_root
from fmnb.dit import compile_blocks, load_dit
from fmnb.evaluation import balanced_labels, load_judge, sample
from fmnb.training import images_seen

@command
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path); p.add_argument("--n", type=int, default=0)
    p.add_argument("--out", default="", help="a profile, such as cifar10: the numbers are published in its report"); p.add_argument("--name", default="snapshots")
    args = p.parse_args(); torch.set_num_threads(1)
    if not (files := sorted(args.folder.glob("ema_*.safetensors"))): raise UserError(f"{args.folder} holds no ema_*.safetensors; name the folder of a training with snap_every above 0")
    made = json.loads((args.folder/"config.json").read_text()); judge, steps, n = load_judge(made["profile"])[0], max(made["solvers"], default=10), args.n or made["n_snap"]
    run = Run(args.name, args.out or made["profile"], **{k: made[k] for k in ("predict", "width", "depth", "patch", "steps", "batch", "optimizer", "w", "seed") if k in made}, sample_steps=steps, n=n)
    print(f"{judge.extractor.metric(n)}, {steps} Euler steps, w = {made['w']:g}, torch {torch.__version__}\n\n| images | FD | judge accuracy | recall |\n|---|---|---|---|")
    for file in files:
        net, seen = compile_blocks(load_dit(file)), images_seen(file); c, y = net.cfg, balanced_labels(n, net.cfg.num_classes)
        s = judge(sample(net, y, (c.channels, c.size, c.size), steps, made["w"], c.num_classes, made["seed"])[0], y)
        for k, v in dict(fd=s.fd, judge_accuracy=s.accuracy, recall=s.recall).items():
            run.row(f"{k}_at_{seen / 1000:g}k", v, n=n, higher_is_better=k != "fd", note=f"{judge.extractor.metric(n)}, {steps} Euler steps, w={made['w']}, after {seen:,} images, the head says {c.predict}")
        print(f"| {seen:,} | {s.fd:.1f} | {s.accuracy:.3f} | {s.recall:.3f} |", flush=True)
    run.finish()
    if args.out: atomic_write(project_root()/"reports"/args.out/"results"/f"{args.name}.json", (run/"results.json").read_bytes())

if __name__ == "__main__": main()
