"""How fast and how right is the search for copies? Ours (hash, signals, vectors) against imagededup and cleanvision, on the same folder of PNG files with the same truth.

    python benchmarks/curation_peers.py [--n 5000] [--data cifar10] [--threads 1] [--out curation]

The folder holds N images and N * 0.28 copies (N = 39,062 makes 50,000 files) of them, a seventh by each of the edits crop, mirror, resize, shift, jpeg, light, rotate. Everybody starts from the files, in one process, and CPU seconds are counted, so that other programs on the machine do not matter. Recall is the share of the copies that are paired with the
image they were made of, precision the share of named pairs that have one source (strict: images that the data set itself holds twice count as mistakes; "planted" leaves pairs of two originals out), at the tool's own default threshold; the last column is the largest recall that its score
allows at a planted precision of 0.98. The second table is about spoilt images: a tenth of the files blurred or made flat; flagged as blurred, dark, bright or without information. With `--out profile` the numbers also go to reports/<profile>/results/curation_peers.json.

The peers are optional: pip install --no-deps imagededup cleanvision PyWavelets tabulate. imagededup's own network needs a download; where it cannot be had, its CNN method runs on EfficientNet-lite0 as its package ships it (ours is the same network with its batch norms folded)."""
import argparse, contextlib, functools, io, logging, os, tempfile, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
from fmnb.core import Run, atomic_write, generator, project_root
from fmnb.data import load
from fmnb.profiling import FAULT_NAMES, Item, Settings, blur, decode, encode, fault_probe, flat, measure, phash, probe_reasons, quality_reasons, thresholds
from fmnb.curation import EDITS, hash_pairs, make_copies
from fmnb.vectors import extractor_for, load_effnet, near_copies, pixel_list, thumbnails

def write(folder, images):
    "Images as PNG files 000000.png, ...; returns the paths."
    paths = [folder/f"{i:06d}.png" for i in range(len(images))]
    for p, a in zip(paths, images): p.write_bytes(encode(a))
    return paths

def read(paths): return [decode(p.read_bytes())[0] for p in paths]

# every contender: folder -> pairs (a, b) with a score (small means copy), and those that it calls copies by default
def our_hash(folder, paths):
    df = pd.DataFrame(dict(zip(("a", "b", "score"), hash_pairs(phash(thumbnails(read(paths))), 12)))); return df, df.score <= 4

def our_vectors(folder, paths):
    images = read(paths); near = near_copies(images, extractor_for(images)); p = near.pairs
    return pd.DataFrame(dict(a=p.a, b=p.b, score=p.residual.fillna(9))), p["copy"]

def named_pairs(found, sign):
    "imagededup's {file: [(file, score)]} as pairs."
    rows = [(int(a[:6]), int(b[:6]), sign * s) for a, many in found.items() for b, s in many if a < b]
    return pd.DataFrame(rows, columns=["a", "b", "score"]).drop_duplicates(["a", "b"])

def dedup_hash(folder, paths):
    from imagededup.methods import PHash
    df = named_pairs(PHash(verbose=False).find_duplicates(image_dir=str(folder), max_distance_threshold=12, scores=True, num_enc_workers=0, num_dist_workers=0), 1)
    return df, df.score <= 10

@functools.cache
def dedup_network():
    from imagededup.methods import CNN
    try: return CNN(verbose=False)
    except Exception: return CNN(verbose=False, model_config=lite0_model())

def dedup_cnn(folder, paths):
    "Its own search up to 10,000 files. Above, its matrix of similarities needs 4 N^2 bytes (10 GB at 50,000), so its encodings are compared in blocks, which is faster than its own loop."
    net = dedup_network()
    if len(paths) <= 10_000:
        df = named_pairs(net.find_duplicates(image_dir=str(folder), min_similarity_threshold=.5, scores=True, num_enc_workers=0, num_sim_workers=0), -1); net.cosine_scores = None
        return df, df.score <= -.9
    found = net.encode_images(image_dir=str(folder), num_enc_workers=0); x = torch.nn.functional.normalize(torch.from_numpy(np.stack([found[p.name] for p in paths])).float(), dim=1); rows = []
    for i in range(0, len(x), 1024):
        sim = x[i:i+1024] @ x.T; a, b = (sim >= .85).nonzero().unbind(1); up = b > a + i
        rows.append((a[up] + i, b[up], -sim[a[up], b[up]]))
    df = pd.DataFrame({k: torch.cat(v).numpy() for k, v in zip(("a", "b", "score"), zip(*rows))})
    return df, df.score <= -.9

def lite0_model():
    from imagededup.utils import CustomModel
    plain = load_effnet()
    class Net(torch.nn.Module):
        def forward(self, x): return plain.extract_features((x - 127) / 128).mean((2, 3))
    return CustomModel("EfficientNet-lite0", Net(), lambda im: torch.from_numpy(np.asarray(im.convert("RGB").resize((64, 64)), np.float32)).permute(2, 0, 1))

def clean_hash(folder, paths):
    from cleanvision import Imagelab
    lab = Imagelab(data_path=str(folder), verbose=False); lab.find_issues({"near_duplicates": {}, "exact_duplicates": {}}, n_jobs=1, verbose=False)
    sets = lab.info["near_duplicates"]["sets"] + lab.info["exact_duplicates"]["sets"]
    ids = [sorted(int(Path(f).stem) for f in s) for s in sets]
    df = pd.DataFrame([(a, b, 0) for s in ids for i, a in enumerate(s) for b in s[i+1:]], columns=["a", "b", "score"]).drop_duplicates(["a", "b"])
    return df, df.score <= 0

SAME = ("blurred", "flat", "too dark", "too bright", "little information")

def our_quality(folder, paths):
    t, _ = measure((Item(p.name, p.read_bytes()) for p in paths), Settings(probe=0)); b = thresholds(t)
    b = {k: v for k, v in b.items() if FAULT_NAMES[k][0] in SAME}
    return np.array([bool(q) for q in quality_reasons(t, b)])

def our_probe(folder, paths):
    items = [Item(p.name, p.read_bytes()) for p in paths]; t, _ = measure(items); probe, p = fault_probe(t, items)
    return np.array([r.split(" (")[0] in SAME for r in (probe_reasons(probe, p) if probe else [""] * len(t))])

def clean_quality(folder, paths):
    from cleanvision import Imagelab
    kinds = ["blurry", "low_information", "dark", "light"]
    lab = Imagelab(data_path=str(folder), verbose=False); lab.find_issues({k: {} for k in kinds}, n_jobs=1, verbose=False)
    return lab.issues.sort_index()[[f"is_{k}_issue" for k in kinds]].any(axis=1).to_numpy()

def cpu_seconds():
    "CPU seconds of this process and of the children that have ended (imagededup starts some)."
    return sum(os.times()[:4])

def timed(f, folder, paths):
    "Result and CPU seconds of a call (all its threads; a busy machine does not change them) that keeps its prints to itself, or (None, why). A first call on forty files loads what has to be loaded."
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore"); few = [folder.parent/f"{folder.name}_few"/p.name for p in paths[:40]]; few[0].parent.mkdir(exist_ok=True)
            for p, q in zip(paths, few): q.write_bytes(p.read_bytes())
            f(few[0].parent, few); start = cpu_seconds(); out = f(folder, paths)
            return out, cpu_seconds() - start
    except ImportError as e: return None, f"not installed ({e.name})"

def record(run, name, **values):
    "The numbers of one contender as results rows; units by name."
    if run:
        for k, v in values.items(): run.row(f"{name}_{k}", v, "1/s" if k == "images_per_s" else "", None if k == "speed_ratio" else True, note="ours / it" if k == "speed_ratio" else "images per CPU second" if k == "images_per_s" else "")

def copies_table(originals, folder, run=None, seed=0):
    made, truth = make_copies(originals, round(.28 * len(originals)), seed)
    paths, n = write(folder, originals + made), len(originals) + len(made)
    source = np.r_[np.arange(len(originals)), truth.source]
    print(f"{len(originals)} images and {len(made)} copies by {len(EDITS)} edits\n\n| method | images/s | ours / it | recall | precision | planted precision | recall at precision 0.98 |\n|---|---|---|---|---|---|---|")
    cnn, _ = timed(lambda *_: dedup_network().model_config.name, folder, paths)
    rows = {"fmnb hash (64 bits, <= 4)": (our_hash, None, "fmnb_hash"), "imagededup PHash (<= 10)": (dedup_hash, 0, "imagededup_hash"), "cleanvision pHash (equal)": (clean_hash, 0, "cleanvision_hash"),
            "fmnb vectors + registration": (our_vectors, None, "fmnb_vectors"), f"imagededup CNN, {cnn} (>= 0.9)": (dedup_cnn, 1, "imagededup_cnn")}
    speed = []
    for name, (f, rival, key) in rows.items():
        out, s = timed(f, folder, paths)
        if out is None: print(f"| {name} | {s} | | | | | |"); continue
        df, flagged = out; same, flagged = (source[df.a] == source[df.b]), flagged.to_numpy(bool)
        if rival is None: speed.append(n / s)
        planted = ((df.a >= len(originals)) | (df.b >= len(originals))).to_numpy(); mine = same[flagged & planted]
        o = np.argsort(df.score.to_numpy(), kind="stable"); o = o[planted[o]]; hit = same[o].cumsum(); sc = df.score.to_numpy()[o]; last = np.r_[sc[1:] != sc[:-1], True] & (sc < 9)
        top = max((hit / len(made))[last & (hit / np.arange(1, len(o) + 1) >= .98)], default=0)
        v = dict(images_per_s=n / s, recall=same[flagged].sum() / len(made), precision=same[flagged].mean() if flagged.any() else 0, precision_planted=mine.mean() if len(mine) else 0, recall_at_98=top)
        if rival is not None: v["speed_ratio"] = speed[rival] / (n / s)
        record(run, key, **v); ratio = f"{v['speed_ratio']:.2f}" if "speed_ratio" in v else ""
        print(f"| {name} | {n / s:.0f} | {ratio} | {v['recall']:.3f} | {v['precision']:.3f} | {v['precision_planted']:.3f} | {top:.3f} |", flush=True)

def quality_table(originals, folder, run=None, seed=0):
    rng = np.random.default_rng(seed); bad = rng.permutation(len(originals))[:len(originals) // 10]; images = list(originals); truth = np.zeros(len(images), bool); truth[bad] = True
    for j, i in enumerate(bad): images[i] = np.ascontiguousarray((blur, flat)[j % 2](images[i], rng))
    paths, speed = write(folder, images), None
    print(f"\n{len(images)} images, {len(bad)} of them blurred or flat\n\n| method | images/s | ours / it | recall | precision |\n|---|---|---|---|---|")
    for name, (f, key) in {"fmnb signals and bounds (with hash and decoding)": (our_quality, "fmnb_bounds"), "fmnb signals and fault probe": (our_probe, "fmnb_probe"),
                           "cleanvision (blurry, low information, dark, light)": (clean_quality, "cleanvision_quality")}.items():
        out, s = timed(f, folder, paths)
        if out is None: print(f"| {name} | {s} | | | |"); continue
        speed = speed or len(paths) / s; v = dict(images_per_s=len(paths) / s, recall=out[truth].mean(), precision=truth[out].mean() if out.any() else 0)
        if f is clean_quality: v["speed_ratio"] = speed / v["images_per_s"]
        record(run, key, **v); ratio = f"{v['speed_ratio']:.2f}" if "speed_ratio" in v else ""
        print(f"| {name} | {len(paths) / s:.0f} | {ratio} | {v['recall']:.3f} | {v['precision']:.3f} |", flush=True)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--n", type=int, default=5000); p.add_argument("--data", default="cifar10"); p.add_argument("--threads", type=int, default=1); p.add_argument("--out", default="", help="a profile, such as curation: the numbers are published in its report")
    args = p.parse_args(); torch.set_num_threads(args.threads)
    d = load(args.data); d = d.subset(torch.randperm(len(d), generator=generator(0, 11))[:args.n].sort().values)
    originals = pixel_list(d.u8.permute(0, 2, 3, 1).numpy())
    print(f"{args.data}, {args.threads} thread(s), torch {torch.__version__}; 'ours / it' is how many times as many images a second ours handles (below 1: ours is slower)\n")
    run = Run("curation_peers", args.out, n=args.n, data=args.data, threads=args.threads) if args.out else None
    for table in (quality_table, copies_table):
        with tempfile.TemporaryDirectory() as tmp: (folder := Path(tmp)/"images").mkdir(); table(originals, folder, run)
    if run: run.finish(); atomic_write(project_root()/"reports"/args.out/"results"/"curation_peers.json", (run/"results.json").read_bytes())

if __name__ == "__main__": main()
