"The profile of ImageNet's latents, from images to results, as it stands but for its sizes: a small autoencoder with random weights and images of 64 pixels."
import json, os, shutil, subprocess, sys
from pathlib import Path
import numpy as np, pytest
from PIL import Image
from fmnb.core import load_tensors
from test_runner import refused

ROOT = Path(__file__).resolve().parent.parent
SMALL = ["18.size=64", "18.autoencoder=small", "18.fit_steps=0", "18.factors=measured", "18.shard=32", "18.n_held=0", "33.size=8", "33.width=32", "33.depth=2", "33.heads=2", "33.steps=20", "33.batch=8", "33.lr=0.003",
         "33.ema=0.9", "33.log_every=5", "33.sample_steps=4", "33.n_eval=24", "33.snap_every=10", "33.n_snap=12", "33.solvers=[4]", "33.n_solve=12", "33.n_near=40"]

def images(folder, n, seed):
    "Noisy squares of 64 pixels, three classes of colour, `n` of each."
    rng = np.random.default_rng(seed)
    for k, name in enumerate("abc"):
        (folder/name).mkdir(parents=True)
        for i in range(n):
            x = rng.integers(0, 60, (64, 64, 3)); a, b = rng.integers(4, 30, 2); x[a:a + 30, b:b + 30, k] += 180
            Image.fromarray(x.astype(np.uint8)).save(folder/name/f"{i:03d}.png")

@pytest.fixture(scope="module")
def fmnb_run(tmp_path_factory):
    "`fmnb_run --profile h100-imagenet` on images of this test's own, with run folders of its own."
    folder = tmp_path_factory.mktemp("latents"); images(folder/"imagenet", 16, 0); images(folder/"imagenet-val", 8, 1)
    def run(*sets, only="18,33"):
        r = subprocess.run([sys.executable, "-m", "fmnb.runner", "--profile", "h100-imagenet", "--only", only, *(a for s in SMALL + list(sets) if s[:2] in only for a in ("--set", s))], cwd=ROOT, capture_output=True, text=True,
                           env=os.environ | dict(FMNB_RUNS=str(folder/"runs"), FMNB_DATA_DIR=str(folder), FMNB_DEVICE="cpu", FMNB_COMPILE="0", HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1"))
        r.out, r.err = r.stdout, r.stderr
        return r
    run.folder = folder/"runs"/"h100-imagenet"
    return run

def test_from_images_to_results(fmnb_run):
    r = fmnb_run(); assert r.returncode == 0, r.err
    first, second = (json.loads((fmnb_run.folder/s/"results.json").read_text()) for s in ("18_latents", "33_scaled_dit"))
    rows = {r["name"]: r for r in first["rows"] + second["rows"]}
    assert rows["latents"]["value"] == 96 // 2 and rows["images_seen"]["value"] == 160 and second["provenance"]["parameters"]["recompute"] is True
    x, meta = load_tensors(fmnb_run.folder/"33_scaled_dit"/"samples.safetensors"); assert x["x"].shape == (24, 4, 8, 8)         # latents are kept, pictures are measured
    for name in ("floor_fd", "autoencoder_fd", "teacher_fd"): assert "fd_effnet_24 against" in rows[name]["note"] and rows[name]["n"] == 24
    assert 0 < rows["floor_fd"]["value"] < rows["autoencoder_fd"]["value"]                                                   # random weights copy badly
    assert {"teacher_kd", "teacher_precision", "teacher_recall", "nearest_neighbour_ratio", "fd_at_0.08k", "fd_at_0.16k", "train_images_per_s", "sample_seconds_per_image"} <= set(rows)
    assert "teacher_judge_accuracy" not in rows and "bits_per_dim" not in rows                                               # not measured, so absent
    assert [p.name for p in sorted((fmnb_run.folder/"33_scaled_dit").glob("ema_*"))] == ["ema_000010.safetensors", "ema_000020.safetensors"]
    assert fmnb_run().out.count("done") == 2

def test_weights_are_judged_as_they_are(fmnb_run):
    refused(fmnb_run("33.steps=0", only="33"), "set 33.start to their file")
    folder = fmnb_run.folder/"33_scaled_dit"; trained = {r["name"]: r["value"] for r in json.loads((folder/"results.json").read_text())["rows"]}
    shutil.copytree(folder, start := fmnb_run.folder/"published"); shutil.rmtree(folder)
    r = fmnb_run("33.steps=0", f"33.start={start}/ema.safetensors", only="33"); assert r.returncode == 0, r.err
    judged = {r["name"]: r["value"] for r in json.loads((folder/"results.json").read_text())["rows"]}
    same = {"images_seen", "train_hours", "teacher_fd", "teacher_recall", "fd_at_0.08k", "fd_at_0.16k", "nearest_neighbour_ratio"}
    assert {k: judged[k] for k in same} == {k: trained[k] for k in same} and "train_images_per_s" not in judged
    for name in ("history.jsonl", "snapshots.safetensors"): assert (folder/name).read_bytes() == (start/name).read_bytes()
    assert {k: v.shape[1:] for k, v in load_tensors(folder/"snapshots.safetensors")[0].items()} == {"80": (3, 64, 64), "160": (3, 64, 64)}           # one was drawn anew, the other handed down

def test_what_latents_cannot_do(fmnb_run):
    refused(fmnb_run("33.n_bits=4", only="33"), "33.n_bits=0")
    refused(fmnb_run("33.size=16", only="33"), "set size=8")
    (fmnb_run.folder/"18_latents"/"reference.safetensors").rename(fmnb_run.folder/"kept")
    refused(fmnb_run("33.w=1.0", only="33"), "set 18.held")
