"""How good are a profile's four steps beside fifty of its teacher, and how much faster?

    FMNB_DATA_DIR=... python benchmarks/few_steps.py --profile cifar10 [--n 500] [--seeds 3] [--many 50] [--out cifar10]

The student of 40_dmd, run here or published, called in all its steps and in half and a quarter of them; its teacher by as many forwards (guided Euler, which takes two a step) and by `--many` guided Euler steps. Every contestant gets the same classes and, seed by seed, the same noise.
Columns: network forwards, Fréchet distance of `--n` images, its ratio to the many-step teacher's seed by seed, recall, the judge's accuracy (mean and deviation over the seeds of the noise; one training), and processor milliseconds an image, taken in turns with batches of 50.
Interrupted at will and resumed by the same command. With `--out profile` the numbers go to reports/<profile>/results/few_steps.json."""
import argparse, json, statistics
from functools import partial
import torch
from fmnb.core import Run, atomic_write, in_turns, load_tensors, project_root, upstream
from fmnb.dit import compile_blocks, load_dit
from fmnb.dmd import sample_student
from fmnb.evaluation import balanced_labels, load_judge, sample
from fmnb.training import images_seen

def contestants(student, trained: int, teacher, shape, w: float, null: int, many: int) -> dict:
    "`{name: draw(labels, seed, folder) -> images}` and the forwards of each."
    called = lambda k: lambda y, seed, folder: sample_student(student, y, k, seed, trained=trained)
    euler = lambda n: lambda y, seed, folder: sample(teacher, y, shape, n, w, null, seed, folder=folder)[0]
    steps = [k for k in range(1, trained + 1) if trained % k == 0]
    return {f"student_{k}nfe": (called(k), k) for k in steps} | {f"teacher_{2 * n}nfe": (euler(n), 2 * n) for n in sorted({max(1, k // 2) for k in steps} | {many})}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--profile", default="cifar10"); p.add_argument("--n", type=int, default=500); p.add_argument("--seeds", type=int, default=3); p.add_argument("--many", type=int, default=50)
    p.add_argument("--out", default="", help="a profile, such as cifar10: the numbers are published in its report")
    args = p.parse_args(); torch.set_num_threads(1)
    at, of = upstream("40_dmd", args.profile)/"student.safetensors", upstream("33_scaled_dit", args.profile)
    made, distilled = (json.loads((folder/"config.json").read_text()) for folder in (of, at.parent))
    student, teacher, judge, seen = compile_blocks(load_dit(at)), compile_blocks(load_dit(of/"ema.safetensors")), load_judge(args.profile)[0], images_seen(of/"ema.safetensors")
    c = teacher.cfg; draws = contestants(student, load_tensors(at)[1]["n_steps"], teacher, (c.channels, c.size, c.size), made["w"], c.num_classes, args.many)
    run, labels = Run("few_steps", args.out or args.profile, n=args.n, seeds=args.seeds, many=args.many), balanced_labels(args.n, c.num_classes)
    scores = {name: [judge(draw(labels, seed, run/f"{name}_{args.n}_{seed}"), labels) for seed in range(args.seeds)] for name, (draw, _) in draws.items()}
    fifty, best = balanced_labels(50, c.num_classes), f"teacher_{2 * args.many}nfe"
    ms = {k: 20 * s for k, s in in_turns({k: partial(draw, fifty, 0, None) for k, (draw, _) in draws.items()}).items()}
    spread = lambda v: statistics.stdev(v) if len(v) > 1 else None
    print(f"{args.profile}: teacher of {seen:,} images, w = {made['w']:g}; student of {distilled['updates']} updates; {judge.extractor.metric(args.n)}, {args.seeds} seeds of noise, torch {torch.__version__}\n\n| contestant | NFE | FD | of the teacher's | recall | accuracy | ms an image |\n|---|---|---|---|---|---|---|")
    for name, (_, nfe) in draws.items():
        s, note = scores[name], f"{judge.extractor.metric(args.n)}, {nfe} forwards, seeds of the noise; teacher of {seen:,} images, w={made['w']:g}; student of {distilled['updates']} updates"
        values = dict(fd=[v.fd for v in s], fd_ratio=[v.fd / t.fd for v, t in zip(s, scores[best])], recall=[v.recall for v in s], judge_accuracy=[v.accuracy for v in s])
        for k, v in values.items(): run.row(f"{name}_{k}", statistics.mean(v), spread=spread(v), n=args.n, seeds=args.seeds, higher_is_better=not k.startswith("fd"), note=note + (f"; over that of {args.many} guided steps, seed by seed" if k == "fd_ratio" else ""))
        run.row(f"{name}_ms", ms[name], n=50, unit="ms", higher_is_better=False, note="processor time of one thread an image, median of three turns, batches of 50")
        print(f"| {name} | {nfe} | " + " | ".join(f"{statistics.mean(v):.4g}" + (f" ± {spread(v):.2g}" if len(v) > 1 else "") for v in values.values()) + f" | {ms[name]:.2f} |", flush=True)
    run.row("speedup", ms[best] / ms[fast := max((k for k in draws if k.startswith("student")), key=lambda k: draws[k][1])], unit="x", higher_is_better=True, note=f"{fast} against {best}, by the clock; in forwards {draws[best][1] / draws[fast][1]:.0f}x")
    run.finish()
    if args.out: atomic_write(project_root()/"reports"/args.out/"results"/"few_steps.json", (run/"results.json").read_bytes())

if __name__ == "__main__": main()
