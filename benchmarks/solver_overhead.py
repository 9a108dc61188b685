"""What does a solver's own loop cost? Time outside the network of 50 Euler steps: ours, torchdiffeq's and diffusers'.

    python benchmarks/solver_overhead.py [--repeats 40] [--steps 50] [--threads 1]

The network is the identity, so that nearly all of the time is the loop's. The three walk the same grid, in turns; the table has medians over the repeats and their ratios to ours (above 1: slower than ours)."""
import argparse, statistics, time
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torchdiffeq import odeint
from fmnb.core import generator
from fmnb.solvers import Euler, uniform_grid

def network(x, t): return x

def ours(x, ts): return Euler()(network, x, ts)

def torchdiffeq_euler(x, ts): return odeint(lambda t, x: network(x, t.expand(len(x))), x, ts, method="euler")[-1]

scheduler = FlowMatchEulerDiscreteScheduler()

def diffusers_euler(x, ts):
    "Its models answer minus our velocity: the identity network is the field -x there."
    scheduler.set_timesteps(sigmas=(1 - ts[:-1]).tolist())
    for t in scheduler.timesteps: x = scheduler.step(network(x, t.expand(len(x))), t, x, return_dict=False)[0]
    return x

def bare(x, ts, sign=1):
    "The same arithmetic with nothing around it: what no loop can beat."
    times = ts.tolist()
    for t, t_next in zip(times, times[1:]): x = x + sign * (t_next - t) * network(x, None)
    return x

@torch.no_grad()
def measure(shape, steps, repeats):
    "Median seconds of each loop, taken in turns; all must agree on the answer."
    x, ts = torch.randn(shape, generator=generator(0)), uniform_grid(steps)
    loops = dict(fmnb=ours, torchdiffeq=torchdiffeq_euler, diffusers=diffusers_euler, bare=bare)
    times = {name: [] for name in loops}
    for name, loop in loops.items(): assert torch.allclose(loop(x, ts), bare(x, ts, -1 if name == "diffusers" else 1), rtol=1e-4), name
    for _ in range(repeats):
        for name, loop in loops.items():
            start = time.perf_counter(); loop(x, ts)
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=int, default=40); p.add_argument("--steps", type=int, default=50); p.add_argument("--threads", type=int, default=1)
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.steps} Euler steps, identity network, medians of {args.repeats} turns, torch {torch.__version__}, {args.threads} thread(s)\n")
    print("| x | fmnb, us a step | torchdiffeq / fmnb | diffusers / fmnb | bare arithmetic / fmnb | ours is not slower |\n|---|---|---|---|---|---|")
    for shape in ((64, 2), (64, 3, 32, 32)):
        m = measure(shape, args.steps, args.repeats); us = 1e6 * m["fmnb"] / args.steps
        r = {k: v / m["fmnb"] for k, v in m.items()}
        print(f"| {' x '.join(map(str, shape))} | {us:.1f} | {r['torchdiffeq']:.2f} | {r['diffusers']:.2f} | {r['bare']:.2f} | {'yes' if min(r['torchdiffeq'], r['diffusers']) >= 1 else 'NO'} |")

if __name__ == "__main__": main()
