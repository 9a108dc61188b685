"""Do the caches of other libraries give the same images from the same weights, and how fast? diffusers' hooks and cache-dit (where it is installed) on a `DiTTransformer2DModel`, ours on the `DiT` that it was made of.

    python benchmarks/caching_peers.py [--batch 20] [--steps 50] [--repeats 5] [--train 150] [--width 96] [--threads 1] [--out caching]

A DiT with the paper's switches is trained for some steps on digits, so that its features move as a network's do, and exported with `to_diffusers_dit`. Every rule is run by both with guidance in one batch, in turns. Columns: speed-up over
the library's own uncached sampler (median of the repeats, seconds of the processor), relative distance to the uncached images, and the largest difference between the two libraries' images. Some of our own caches stand
beside them without a partner: for every point of theirs, how near do we come in as little time? cache-dit's DBCache runs on a small `ZImageTransformer2DModel` with weights drawn at random, beside our `S3DiT` of the same weights. What cannot be attached is listed with its error. With `--out profile` the numbers go to reports/<profile>/results/caching_peers.json."""
import argparse, copy, importlib.metadata, re, statistics, time
from contextlib import contextmanager
import torch
from diffusers import ZImageTransformer2DModel, hooks
from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context
from fmnb.caching import Cached, Rule, Session
from fmnb.calibration import calibrate, distance
from fmnb.core import Run, atomic_write, generator, project_root, seed_everything
from fmnb.data import batch_indices, load
from fmnb.dit import DiT
from fmnb.evaluation import balanced_labels
from fmnb.guidance import Guided
from fmnb.policies import MagRatio, Mask
from fmnb.predictors import Taylor
from fmnb.presets import preset
from fmnb.published import paper_dit, to_diffusers_dit
from fmnb.single_stream import from_diffusers
from fmnb.solvers import Euler, uniform_grid

NULL, W = 10, 2.

def trained(width: int, steps: int) -> DiT:
    "A small paper-like DiT after a short training on digits."
    seed_everything(0)
    cfg = paper_dit("S/4", size=28, channels=1, num_classes=NULL, width=width, depth=6, heads=4, out_channels=0, freq_shift=1)
    net, data = DiT(cfg), load("digits", size=28); opt = torch.optim.AdamW(net.parameters(), lr=2e-3)
    for k in range(steps):
        g = generator(1, k); x1, y = data.batch(batch_indices(len(data), k, 32, 0), g)
        x0, t = torch.randn(x1.shape, generator=g), torch.rand(len(x1), generator=g); y = torch.where(torch.rand(len(y), generator=g) < .1, NULL, y)
        x = t.view(-1, 1, 1, 1) * x1 + (1 - t.view(-1, 1, 1, 1)) * x0
        loss = (net(x, t, y) - (x1 - x0)).square().mean(); opt.zero_grad(); loss.backward(); opt.step()
    print(f"loss of the small DiT after {steps} steps: {loss.item():.3f}" if steps else "untrained", flush=True)
    return net.eval().requires_grad_(False)

class Theirs:
    "A diffusers DiT as a velocity; `now` is the timestep that hooks may ask for."
    def __init__(self, model): self.model, self.now = model, 500.
    def __call__(self, x, t, y): self.now = min(max(1000 * t[0].item(), 1.), 999.); return self.model(x, timestep=1000 * t, class_labels=y).sample

@contextmanager
def hooked(model, attach):
    "The model with a cache attached, in the context of one batch for both branches; afterwards as it was."
    before = {n: m.__dict__.get("forward") for n, m in model.named_modules()}
    try:
        attach(model); _set_cache_context(model, CacheContext("cond_uncond")); yield
    finally:
        for n, m in model.named_modules():
            m.__dict__.pop("_diffusers_hook", None)
            if before[n] is None: m.__dict__.pop("forward", None)
            else: m.forward = before[n]

def run_ours(net, rules, x0, y, ts):
    s = Session(rules, ts); start = time.process_time()
    x = Euler()(Guided(Cached(net, s), W, NULL), x0, ts, callback=s.step, y=y)
    return x, time.process_time() - start

def run_theirs(velocity, attach, x0, y, ts):
    if getattr(attach, "fresh", False): velocity = Theirs(copy.deepcopy(velocity.model))            # what cannot be taken off again gets a model of its own
    with hooked(velocity.model, attach):
        start = time.process_time(); x = Euler()(Guided(velocity, W, NULL), x0, ts, y=y)
        return x, time.process_time() - start

def cases(net, velocity, cal, steps):
    "Name: (how it is attached there, the same rule here)."
    at = lambda every, before: Mask(tuple(int(i < before or (i - before - 1) % every == 0) for i in range(steps)))          # diffusers' TaylorSeer computes these
    mag = lambda limit: (lambda m: hooks.apply_mag_cache(m, hooks.MagCacheConfig(threshold=limit, max_skip_steps=3, retention_ratio=.2, num_inference_steps=steps, mag_ratios=cal.gammas["trunk"])), [Rule("trunk", MagRatio(tuple(cal.gammas["trunk"]), limit, 3, .2), target="residual")])
    taylor = lambda every, order: (lambda m: hooks.apply_taylorseer_cache(m, hooks.TaylorSeerCacheConfig(cache_interval=every, disable_cache_before_step=2, max_order=order, taylor_factors_dtype=torch.float32, cache_identifiers=[r"transformer_blocks\.\d+\.(attn1|ff)"])), [Rule("block*.*", at(every, 2), Taylor(order))])
    pab = lambda every: (lambda m: hooks.apply_pyramid_attention_broadcast(m, hooks.PyramidAttentionBroadcastConfig(spatial_attention_block_skip_range=every, spatial_attention_timestep_skip_range=(0, 1000), current_timestep_callback=lambda: velocity.now)), [Rule("block*.attn", every)])
    first = lambda limit: (lambda m: hooks.apply_first_block_cache(m, hooks.FirstBlockCacheConfig(threshold=limit)), preset("fbcache", limit=limit))
    return {"FirstBlockCache .05": first(.05), "FirstBlockCache .1": first(.1), "PAB every 2": pab(2), "PAB every 3": pab(3), "TaylorSeer every 3, order 1": taylor(3, 1), "TaylorSeer every 4, order 2": taylor(4, 2), "MagCache .06": mag(.06), "MagCache .2": mag(.2)}

def refusals(velocity, run):
    "What of the others cannot be attached to this class, with the error that says so."
    def faster(m): hooks.apply_faster_cache(m, hooks.FasterCacheConfig(spatial_attention_block_skip_range=2, unconditional_batch_skip_range=5, attention_weight_callback=lambda _: .5, current_timestep_callback=lambda: velocity.now))
    def mixin(m): m.enable_cache(hooks.FirstBlockCacheConfig())
    def dit(m):
        import cache_dit
        cache_dit.enable_cache(m)
    def adapted(m):
        import cache_dit
        cache_dit.enable_cache(cache_dit.BlockAdapter(transformer=m, blocks=m.transformer_blocks, forward_pattern=cache_dit.ForwardPattern.Pattern_3, check_forward_pattern=False),
                               cache_config=cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, enable_separate_cfg=False, num_inference_steps=4))
    dit.fresh = adapted.fresh = True
    def sea(m): hooks.apply_sea_cache(m, hooks.SeaCacheConfig())
    out = {}
    for name, attach in {"enable_cache of the class": mixin, "diffusers FasterCache": faster, "diffusers SeaCache": sea, "cache-dit, by the class alone": dit, "cache-dit, with a BlockAdapter": adapted}.items():
        try: x, seconds = run(attach); out[name] = f"attached; {seconds:.2f} s"
        except Exception as e: out[name] = f"{type(e).__name__}: {' '.join(str(e).split())[:220]}"
    return out

OWN = {"trunk, a line, every 2": preset("newton", every=2, order=1), "trunk, a line, every 3": preset("newton", every=3, order=1), "trunk, a line, every 5": preset("newton", every=5, order=1), "TaylorSeer-lite every 2": preset("taylorseer_lite", every=2), "TaylorSeer-lite every 4": preset("taylorseer_lite", every=4)}

@torch.no_grad()
def compare(net, batch, steps, repeats, run):
    x0, y, ts = torch.randn(batch, 1, 28, 28, generator=generator(3)), balanced_labels(batch), uniform_grid(steps)
    velocity = Theirs(to_diffusers_dit(net)); cal = calibrate(net, torch.randn(4, 1, 28, 28, generator=generator(4)), ts, sites=("trunk",), w=W, null=NULL, y=balanced_labels(4))
    field = {"uncached": (lambda m: None, [])} | cases(net, velocity, cal, steps); seen, own = {k: [] for k in field}, {k: [] for k in OWN}
    for _ in range(repeats):
        for k, (attach, rules) in field.items():
            a, mine = run_ours(net, rules, x0, y, ts); b, theirs = run_theirs(velocity, attach, x0, y, ts); seen[k].append((mine, theirs, a, b))
        for k, rules in OWN.items(): own[k].append(run_ours(net, rules, x0, y, ts))
    median, full, slug = {k: [statistics.median(r[j] for r in rs) for j in (0, 1)] for k, rs in seen.items()}, seen["uncached"][0][2:], lambda k: re.sub(r"[ .,]+", "_", k.lower())
    note = f"{batch} samples, {steps} guided steps, median of {repeats} turns, processor seconds; error: relative distance to the library's own uncached images"
    ours = {k: (median[k][0], distance(rs[0][2], full[0])) for k, rs in seen.items()} | {k: (statistics.median(t for _, t in rs), distance(rs[0][0], full[0])) for k, rs in own.items()}
    theirs = {k: (median[k][1], distance(rs[0][3], full[1])) for k, rs in seen.items()}
    print(f"\n| rule | ours, x | theirs, x | ours / theirs in time | error ours | error theirs | largest difference |\n|---|---|---|---|---|---|---|")
    for k, (s, e) in ours.items():
        run.row(f"{slug(k)}_ours_seconds", s, n=batch, unit="s", higher_is_better=False, note=note); run.row(f"{slug(k)}_ours_error", e, n=batch, higher_is_better=False, note=note)
        if k not in theirs: print(f"| {k} | {median['uncached'][0] / s:.2f} | | | {e:.4f} | | |"); continue
        (a, b), (t, f) = seen[k][0][2:], theirs[k]; gap = (a - b).abs().max().item()
        run.row(f"{slug(k)}_theirs_seconds", t, n=batch, unit="s", higher_is_better=False, note=note); run.row(f"{slug(k)}_theirs_error", f, n=batch, higher_is_better=False, note=note); run.row(f"{slug(k)}_difference", gap, n=batch, higher_is_better=False, note="largest difference between both libraries' images")
        print(f"| {k} | {median['uncached'][0] / s:.2f} | {median['uncached'][1] / t:.2f} | {s / t:.2f} | {e:.4f} | {f:.4f} | {gap:.1e} |")
    ahead = {k: min((e for s, e in ours.values() if s <= 1.05 * t), default=float("inf")) <= f + 1e-6 for k, (t, f) in theirs.items()}
    run.row("points_at_or_ahead", sum(ahead.values()) / len(ahead), n=len(ahead), higher_is_better=True, note="share of the other libraries' points that a cache of ours reaches or beats in error in no more time (5 % allowed for the clock)" + ("" if all(ahead.values()) else "; not " + ", ".join(k for k, v in ahead.items() if not v)))
    print(f"\nAt or ahead of theirs in no more time: {sum(ahead.values())} of {len(ahead)}{'' if all(ahead.values()) else '; not ' + ', '.join(k for k, v in ahead.items() if not v)}\n\nNot compared:")
    for k, why in refusals(velocity, lambda attach: run_theirs(velocity, attach, x0[:2], y[:2], uniform_grid(4))).items(): print(f"- {k}: {why}"); run.row(f"not_compared_{slug(k)}", 1, note=why)

class Stream:
    "A Z-Image transformer as a velocity; y are caption features (B, L, d)."
    def __init__(self, model): self.model = model
    def __call__(self, x, t, y): return torch.stack(self.model(list(x[:, :, None]), t, list(y)).sample)[:, :, 0]

@torch.no_grad()
def compare_stream(batch, steps, repeats, run, limits=(.15, .2, .3)):
    "cache-dit's DBCache with one block computed, beside `fbcache`, on one small Z-Image transformer whose features move slowly."
    try: import cache_dit
    except ImportError: print("- cache-dit on Z-Image's transformer: not installed"); return
    net = ZImageTransformer2DModel(in_channels=4, dim=96, n_layers=6, n_refiner_layers=2, n_heads=3, n_kv_heads=3, cap_feat_dim=20, axes_dims=[8, 12, 12], axes_lens=[128, 32, 32]).eval().requires_grad_(False); gen = generator(0)
    for p in net.parameters(): p.data = torch.randn(p.shape, generator=gen) * (.3 if p.ndim == 1 or min(p.shape) == 1 else p.shape[1] ** -.5) + (p.data == 1)
    net.t_embedder.mlp[2].weight.data *= .1; net.all_final_layer["2-1"].linear.weight.data *= .2
    ours, x0, y, ts = from_diffusers(net).requires_grad_(False), torch.randn(batch, 4, 16, 16, generator=generator(1)), torch.randn(batch, 8, 20, generator=generator(2)), uniform_grid(steps)
    def attached(limit):
        model = copy.deepcopy(net)
        config = cache_dit.DBCacheConfig(Fn_compute_blocks=1, Bn_compute_blocks=0, residual_diff_threshold=limit, max_warmup_steps=0, enable_separate_cfg=False, num_inference_steps=steps)
        cache_dit.enable_cache(cache_dit.BlockAdapter(transformer=model, blocks=model.layers, forward_pattern=cache_dit.ForwardPattern.Pattern_3, check_forward_pattern=False), cache_config=config); return model
    def go(limit):
        session, model = Session([] if limit is None else preset("fbcache", limit=limit), ts), net if limit is None else attached(limit)
        start = time.process_time(); a = Euler()(Cached(ours, session), x0, ts, callback=session.step, y=y); mine = time.process_time() - start
        start = time.process_time(); b = Euler()(Stream(model), x0, ts, y=y); return mine, time.process_time() - start, a, b
    seen = {limit: [go(limit) for _ in range(repeats)] for limit in (None, *limits)}; full = seen[None][0][2:]
    print("\n| Z-Image's transformer | ours, x | cache-dit, x | ours / theirs in time | error ours | error theirs | largest difference |\n|---|---|---|---|---|---|---|")
    for limit, rs in seen.items():
        (mine, theirs), (plain, plain_theirs) = ([statistics.median(r[j] for r in seen[k]) for j in (0, 1)] for k in (limit, None)); a, b = rs[0][2:]
        name, gap = "uncached" if limit is None else f"DBCache {limit:g}", (a - b).abs().max().item(); slug = re.sub(r"[ .]+", "_", name.lower())
        print(f"| {name} | {plain / mine:.2f} | {plain_theirs / theirs:.2f} | {mine / theirs:.2f} | {distance(a, full[0]):.4f} | {distance(b, full[1]):.4f} | {gap:.1e} |")
        run.row(f"z_image_{slug}_time_ratio", mine / theirs, n=batch, higher_is_better=False, note=f"ours over cache-dit's on the same weights; {plain / mine:.2f}x here, error {distance(a, full[0]):.4f}; {plain_theirs / theirs:.2f}x there, error {distance(b, full[1]):.4f}")
        run.row(f"z_image_{slug}_gap", gap, n=batch, higher_is_better=False, note="largest difference between both libraries' images")

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(batch=20, steps=50, repeats=5, train=150, width=96, threads=1).items(): p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--out", default="", help="a profile, such as caching: the numbers are published in its report")
    a = p.parse_args(); torch.set_num_threads(a.threads)
    version = lambda n: next((d.version for d in importlib.metadata.distributions() if (d.metadata["Name"] or "").replace("_", "-") == n), "not installed")
    print(f"{a.batch} samples, {a.steps} guided Euler steps, {a.repeats} turns, {a.threads} thread(s); torch {torch.__version__}, diffusers {version('diffusers')}, cache-dit {version('cache-dit')}")
    run = Run("caching_peers", a.out or "peers", **{k: getattr(a, k) for k in ("batch", "steps", "repeats", "train", "width", "threads")}, diffusers=version("diffusers"), cache_dit=version("cache-dit"))
    compare(trained(a.width, a.train), a.batch, a.steps, a.repeats, run); compare_stream(min(a.batch, 4), a.steps, a.repeats, run); run.finish()
    if a.out: atomic_write(project_root()/"reports"/a.out/"results"/"caching_peers.json", (run/"results.json").read_bytes())

if __name__ == "__main__": main()
