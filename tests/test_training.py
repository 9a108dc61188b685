"What a notebook cannot hold: a training killed with -9 and started again, and the bad inputs of the training stage, each one sentence and exit code 2."
import errno, os, socket, subprocess, sys, time
from pathlib import Path
import numpy as np, psutil, pytest, torch
from PIL import Image
from fmnb import core
from fmnb.core import Run, UserError, load_tensors
from fmnb.data import ImageSet, batch_indices, load
from fmnb.dit import DiTConfig, all_blocks, compile_blocks, n_params
from fmnb.single_stream import S3Config
from fmnb.training import NonFinite, TrainConfig, fit, param_groups, recompute_blocks, train, train_dit, train_state
from test_runner import refused

ROOT = Path(__file__).resolve().parent.parent
TRAIN = """
import sys
from fmnb.core import Run
from fmnb.data import load
from fmnb.dit import DiTConfig
from fmnb.training import TrainConfig, train_dit
train_dit(Run("33", path=sys.argv[1]), load("digits", "train", size=8, n=64), DiTConfig(size=8, patch=4, width=16, heads=2, depth=1),
          TrainConfig(steps=120, batch=8), log_every=3, compile=False)
print("finished")
"""

KILLS = """
import os, random, signal, sys, time, traceback, torch._dynamo, tqdm.auto
from pathlib import Path
from fmnb.core import Run, device
from fmnb.data import load
from fmnb.dit import DiTConfig
from fmnb.training import TrainConfig, measured_peak, train_dit
data, fsync = load("digits", "train", size=8, n=64), os.fsync; measured_peak(device())

def start(folder, slow_disk=0.):
    "A process that trains: a fork of this one, so that it is at work at once."
    if pid := os.fork(): return pid
    os.fsync = lambda fd: (fsync(fd), time.sleep(slow_disk))
    try: run = Run("33", path=folder); train_dit(run, data, DiTConfig(size=8, patch=4, width=16, heads=2, depth=1), TrainConfig(steps=120, batch=8), log_every=3, compile=False, snap_every=30); run.finish()
    except BaseException: traceback.print_exc(); os._exit(1)
    os._exit(0)

whole, killed, rng, torn = *map(Path, sys.argv[1:3]), random.Random(0), 0
begun = time.perf_counter(); assert os.waitpid(start(whole), 0)[1] == 0; took = time.perf_counter() - begun
def kill(until, **kw):
    "Start, kill -9 when `until(pid)` says so; whether a file was being written, or None if it had finished before."
    pid = start(killed, **kw)
    while not until(pid) and os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None: time.sleep(.0005)
    os.kill(pid, signal.SIGKILL); status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL), f"a restart failed: {status}"
    return None if status == 0 else any(killed.glob(f"*.{pid}.tmp"))
def logged(): return (killed/"stats.jsonl").read_bytes().count(b"\\n") if (killed/"stats.jsonl").exists() else 0
for k in range(20):                                               # after none to two more records and a moment, or then when a file is half there: so the end is not reached, however fast the machine has become
    goal, late = logged() + rng.randrange(3), rng.random() * took / 120
    def until(pid, moment=[]):
        if logged() < goal: return False
        if not moment: moment.append(time.perf_counter() + late)
        return time.perf_counter() > moment[0] and (k % 2 == 0 or any(killed.glob(f"*.{pid}.tmp")))
    torn += kill(until, slow_disk=.01 * (k % 2))
for name in ("model", "ema"): assert kill(lambda pid: any(killed.glob(f"{name}.safetensors.{pid}.tmp")), slow_disk=.01)      # at the very end
assert os.waitpid(start(killed), 0)[1] == 0
print(f"{took:.1f} s, torn", torn)
"""

def test_kill_9_at_20_moments_loses_nothing(tmp_path):
    whole, killed = tmp_path/"whole", tmp_path/"killed"
    r = subprocess.run([sys.executable, "-c", KILLS, str(whole), str(killed)], cwd=ROOT, env=os.environ | dict(OMP_NUM_THREADS="1"), capture_output=True, text=True, timeout=600)
    assert r.returncode == 0 and int(r.stdout.split()[-1]) >= 10, r.stderr
    names = sorted(p.name for p in whole.glob("*.safetensors")); assert len(names) == 3 + 4 and sorted(p.name for p in killed.iterdir()) == sorted(p.name for p in whole.iterdir())      # no half-written file is left
    for name in names:
        a, b = load_tensors(whole/name)[0], load_tensors(killed/name)[0]
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    logs = [[(r["step"], r["loss"], r["grad_norm"], r["bins"]) for r in Run("33", path=d).stats("train")] for d in (whole, killed)]
    assert logs[0] == logs[1] and len(logs[0]) == 40               # no line lost, none twice

FSDP = ("--use_fsdp", "--fsdp_version", "2")
TOGETHER = """import torch.distributed.fsdp as fsdp
shard = fsdp.fully_shard
fsdp.fully_shard = lambda *a, **kw: print("cut") or shard(*a, **kw)
""" + TRAIN.replace("TrainConfig(steps=120, batch=8)", "TrainConfig(steps=int(sys.argv[2]), batch=8, optimizer='adamw', decay=0.)")

def train_together(folder, world, steps, *flags):
    "One training by one process, or by `world` gloo processes that `accelerate launch` starts on this machine with `flags`; its losses."
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    launcher = ["-m", "accelerate.commands.launch", *flags, *f"--num_processes {world} --num_machines 1 --mixed_precision no --dynamo_backend no --main_process_port {port}".split()] if world > 1 else []
    (script := folder.parent/"together.py").write_text(TOGETHER); env = os.environ | dict(OMP_NUM_THREADS="1", FMNB_DEVICE="cpu", FMNB_DTYPE="float32", PYTHONPATH=str(ROOT))
    r = subprocess.run([sys.executable, *launcher, str(script), str(folder), str(steps)], cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert r.returncode == 0 and r.stdout.count("finished") == world and r.stdout.count("cut") == 2 * world * (flags == FSDP), r.stderr      # the block and the rest, in every process
    return [r["loss"] for r in Run("33", path=folder).stats("train")]

def test_two_processes_are_one(tmp_path):
    alone = train_together(tmp_path/"one", 1, 60)
    two = train_together(tmp_path/"two", 2, 30, "--multi_gpu")            # its word for several processes; they find no GPU and talk by gloo
    assert len(two) == 10 and np.allclose(two, alone[:10], rtol=1e-4, atol=0)
    mixed = train_together(tmp_path/"two", 1, 60)                     # the other half by one process
    assert len(mixed) == 20 and np.allclose(mixed, alone, rtol=1e-3, atol=0)
    a, b = (load_tensors(tmp_path/d/"ema.safetensors")[0] for d in ("one", "two"))
    assert all(torch.allclose(a[k], b[k], rtol=0, atol=1e-3) for k in a)

def test_two_sharded_processes_are_one(tmp_path):
    alone = train_together(tmp_path/"one", 1, 60)
    two = train_together(tmp_path/"two", 2, 30, *FSDP)
    assert len(two) == 10 and np.allclose(two, alone[:10], rtol=1e-4, atol=0)
    train_together(tmp_path/"two", 2, 45, *FSDP)                       # resumed by two, and finished by one
    mixed = train_together(tmp_path/"two", 1, 60)
    assert len(mixed) == 20 and np.allclose(mixed, alone, rtol=1e-3, atol=0)
    for name in ("ema.safetensors", "model.safetensors", "train.state.safetensors"):
        a, b = (load_tensors(tmp_path/d/name)[0] for d in ("one", "two"))
        assert a.keys() == b.keys() and all(a[k].shape == b[k].shape and torch.allclose(a[k], b[k], rtol=0, atol=1e-3) for k in a)

def test_two_processes_and_an_odd_batch(tmp_path):
    with socket.socket() as s: s.bind(("127.0.0.1", 0)); port = s.getsockname()[1]
    code = TOGETHER.replace("batch=8", "batch=7").replace("train_dit(Run", "from fmnb.core import command\n@command\ndef go(): train_dit(Run") + "\ngo()"
    env = os.environ | dict(OMP_NUM_THREADS="1", FMNB_DEVICE="cpu", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE="2")
    started = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path), "6"], cwd=ROOT, env=env | dict(RANK=str(r), LOCAL_RANK=str(r)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for r in range(2)]
    for p in started:
        err = p.communicate(timeout=300)[1]
        assert p.returncode == 2 and "a batch of 7 cannot be dealt to 2 processes" in err and "Traceback" not in err, err
    assert not (tmp_path/"train.state.safetensors").exists()

SMALL, FEW = DiTConfig(size=8, patch=4, width=16, heads=2, depth=1), TrainConfig(steps=6, batch=4, warmup=2)
def small_run(folder, data, cfg=FEW, model=SMALL): return train_dit(Run("33", path=folder), data, model, cfg, log_every=2, compile=False)

@pytest.mark.parametrize("bad", [10, -1])
def test_labels_out_of_range(tmp_path, bad):
    data = load("digits", "train", size=8, n=8); data.y[3] = bad
    with pytest.raises(UserError, match="labels run from .* but the model has 10 classes"): small_run(tmp_path, data)
    assert not (tmp_path/"train.state.safetensors").exists()

def test_no_images(tmp_path):
    with pytest.raises(UserError, match="no images"): small_run(tmp_path, load("digits", "train", size=8, n=24).subset([]))

def test_images_that_no_patch_tiles():
    with pytest.raises(UserError, match="patches of 3 do not tile images of 8 pixels"): DiTConfig(size=8, patch=3)

class Spoiled(ImageSet):
    "Images of which one of step 3 is no number: what a loader of floats could hand over."
    def batch(self, idx, generator=None):
        x, y = super().batch(idx, generator)
        return torch.where((torch.as_tensor(idx) == batch_indices(24, 3, 4, 0)[1])[:, None, None, None], torch.full_like(x, float("nan")), x), y

def test_nan_in_the_data_stops_before_the_weights(tmp_path):
    good = load("digits", "train", size=8, n=24); data = Spoiled(good.u8, good.y, good.classes)
    with pytest.raises(NonFinite, match="^step 3: loss nan.*the last checkpoint is whole"): small_run(tmp_path, data)
    tensors, meta = load_tensors(tmp_path/"train.state.safetensors")
    assert meta["step"] == 2 and all(torch.isfinite(v).all() for v in tensors.values())
    small_run(tmp_path, good); small_run(tmp_path/"whole", good)                                # mended, the same command goes on and nothing is lost
    a, b = (load_tensors(d/"train.state.safetensors")[0] for d in (tmp_path, tmp_path/"whole"))
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_full_disk_in_a_training(tmp_path, monkeypatch):
    data, real, full = load("digits", "train", size=8, n=24), os.fsync, [False]
    def fsync(fd):
        if full[0]: raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)
    monkeypatch.setattr(os, "fsync", fsync)
    run, state = Run("33", path=tmp_path/"a"), train_state(data, SMALL, FEW)
    def loop():
        for rec in train(state, data, FEW): full[0] = rec["step"] > 2; yield rec
    with pytest.raises(UserError, match="no space left on the disk.*what was saved before is whole"): fit(run, state, loop(), 6, 4, log_every=2)
    assert load_tensors(tmp_path/"a"/"train.state.safetensors")[1]["step"] == 2 and not list((tmp_path/"a").glob("*.tmp"))
    full[0] = False; small_run(tmp_path/"a", data); small_run(tmp_path/"b", data)
    a, b = (load_tensors(tmp_path/d/"train.state.safetensors")[0] for d in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)

def test_checkpoint_of_other_settings_is_kept(tmp_path):
    data = load("digits", "train", size=8, n=24); small_run(tmp_path, data)
    before = (tmp_path/"train.state.safetensors").read_bytes()
    for cfg, says in ((TrainConfig(steps=6, batch=4, warmup=2, lr=.1), "lr=0.002, now it is 0.1"), (TrainConfig(steps=6, batch=4, warmup=2, seed=1), "seed=0, now it is 1")):
        with pytest.raises(UserError, match=f"made with {says}.*--force"): small_run(tmp_path, data, cfg)
    assert (tmp_path/"train.state.safetensors").read_bytes() == before

OTHER_CODE = dict(lost_average=lambda t: t.pop("ema.model.head.weight"), other_name=lambda t: t.update({"model.model.tail.weight": t.pop("model.model.head.weight")}), other_shape=lambda t: t.update({"model.model.head.weight": torch.zeros(3, 3)}),
                  other_optimizer=lambda t: t.update({"opt.sgd.0.momentum": torch.zeros(3)}), other_moments=lambda t: t.update({"opt.adamw.model.head.weight.exp_avg": torch.zeros(2, 2)}), lost_moment=lambda t: t.pop("opt.adamw.model.head.weight.exp_avg_sq"),
                  lost_steps=lambda t: [t.pop(n) for n in list(t) if n.endswith("head.weight.step")], one_without=lambda t: [t.pop(n) for n in list(t) if n.startswith("opt.adamw.model.head.weight")],
                  no_moments=lambda t: [t.pop(n) for n in list(t) if n.startswith("opt.")])

@pytest.mark.parametrize("change", OTHER_CODE)
def test_checkpoint_of_other_code_is_kept(tmp_path, change):
    data, path = load("digits", "train", size=8, n=24), tmp_path/"train.state.safetensors"; small_run(tmp_path, data)
    tensors, meta = load_tensors(path); OTHER_CODE[change](tensors); core.save_tensors(path, tensors, **meta); before = path.read_bytes()
    state = train_state(data, SMALL, FEW); fresh = {k: v.clone() for k, v in state.tensors().items()}
    with pytest.raises(UserError, match=r"^the checkpoint .* was made by other code: .* do not fit, first .*--force$"): state.resume(path)
    assert path.read_bytes() == before and state.step == 0 and all(torch.equal(v, fresh[k]) for k, v in state.tensors().items())

def test_moments_find_their_parameters_by_name(tmp_path):
    "A file in which optimizers number their parameters, as they once did, is read alike; in another order the moments still go where they belong."
    data, path = load("digits", "train", size=8, n=24), tmp_path/"train.state.safetensors"; small_run(tmp_path, data)
    state = train_state(data, SMALL, FEW); tensors, meta = load_tensors(path); want = state.resume(path).tensors()
    number = {f"opt.{k}.{n}": f"opt.{k}.{i}" for k, names in state.names().items() for i, n in enumerate(names)}
    old = {number.get(n.rpartition(".")[0], n.rpartition(".")[0]) + n[n.rfind("."):]: v for n, v in tensors.items()}
    assert old.keys() != tensors.keys(); core.save_tensors(tmp_path/"old", old, **meta)
    turned = train_state(data, SMALL, FEW)
    for o in turned.optimizers.values(): o.param_groups[0]["params"].reverse()
    for other, file in ((train_state(data, SMALL, FEW), tmp_path/"old"), (turned, path)):
        got = other.resume(file).tensors(); assert got.keys() == want.keys() and all(torch.equal(v, want[n]) for n, v in got.items())

def test_all_blocks_of_a_single_stream_are_treated_alike():
    "Refiners too: matrices by Muon, compiled, recomputed."
    cfg = S3Config(size=8, channels=1, num_classes=10, patch=4, width=16, heads=2, depth=1, refiners=1, cond_dim=16, axes_dims=(4, 2, 2), rank=16, time_hidden=16)
    model = cfg.build(); adamw, muon = param_groups(model, TrainConfig())
    by_muon = {id(p) for p in muon.param_groups[0]["params"]}; names = {n for n, p in model.named_parameters() if id(p) in by_muon}
    assert names == {n for part in ("noise.0", "context.0", "blocks.0") for n in (f"{part}.{m}.weight" for m in ("attn.qkv", "attn.proj", "mlp.up", "mlp.down"))}
    assert len(all_blocks(model)) == 3 and sum(p.numel() for o in (adamw, muon) for p in o.param_groups[0]["params"]) == n_params(model)
    compile_blocks(recompute_blocks(model)); assert all("forward" in vars(b) and "fused" in vars(b) for b in all_blocks(model))

def test_code_that_changed_is_said(tmp_path, capsys):
    data, path = load("digits", "train", size=8, n=24), tmp_path/"train.state.safetensors"; small_run(tmp_path, data)
    assert small_run(tmp_path, data) and "other code" not in capsys.readouterr().out                              # the same code goes on without a word
    tensors, meta = load_tensors(path); core.save_tensors(path, tensors, **meta | dict(code="0123abcd", step=3))
    state = train_state(data, SMALL, FEW).resume(path)
    said = capsys.readouterr().out; assert "made by other code of the training, 0123abcd and not" in said and len(said.splitlines()) == 1 and state.step == 3
    core.save_tensors(path, tensors, step=3, settings=meta["settings"]); train_state(data, SMALL, FEW).resume(path); assert not capsys.readouterr().out      # from before this was kept

def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path/"state"
    core.atomic_write(path, "old")
    def full(fd): raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="no space left on the disk"): core.atomic_write(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["state"]

def test_stage_killed_with_and_without_its_kernel(tmp_path):
    "`fmnb_run` as users run it, compiled: killed with -9 together with the kernel that trains, or alone, so that the kernel finds itself without it; the weights are those of the run that nobody killed."
    sets = [f"33.{k}" for k in ("use_curated=false", "steps=300", "log_every=2", "snap_every=0")]
    def trained(runs, kills):
        folder = runs/"smoke"/"33_scaled_dit"; lines = lambda: len((folder/"stats.jsonl").read_bytes().splitlines()) if (folder/"stats.jsonl").exists() else 0
        for alone, more in [*kills, (False, 0)]:
            p = subprocess.Popen([sys.executable, "-m", "fmnb.runner", "--profile", "smoke", "--only", "33", *(w for v in sets for w in ("--set", v))], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=open(runs/"err", "w"),
                                 env=os.environ | dict(FMNB_RUNS=str(runs), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", FMNB_QUIET="1"))
            want = lines() + more
            while p.poll() is None and not (lines() >= want if more else (folder/"ema.safetensors").exists()): time.sleep(.01)
            assert p.poll() is None, (runs/"err").read_text()
            for q in [p] if alone else [*psutil.Process(p.pid).children(recursive=True), p]: q.kill()
            p.wait()
        return folder
    for d in ("whole", "killed"): (tmp_path/d).mkdir()
    whole, killed = trained(tmp_path/"whole", []), trained(tmp_path/"killed", [(False, 20), (True, 30), (True, 7)])
    for name in ("ema", "model", "train.state"):
        a, b = (load_tensors(d/f"{name}.safetensors")[0] for d in (whole, killed)); assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), name
    logs = [[(r["step"], r["loss"]) for r in Run("33", path=d).stats("train")] for d in (whole, killed)]; assert logs[0] == logs[1] and len(logs[0]) == 150

@pytest.fixture
def stage(tmp_path):
    "The real training stage, `fmnb_run --profile smoke --only 33`, with run folders of its own."
    def run(*args, only="33", sets=("--set", "use_curated=false")):
        r = subprocess.run([sys.executable, "-m", "fmnb.runner", "--profile", "smoke", "--only", only, *sets, *args], cwd=ROOT, capture_output=True, text=True,
                           env=os.environ | dict(FMNB_RUNS=str(tmp_path), FMNB_DATA_DIR=str(tmp_path), HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1"))
        r.out, r.err = r.stdout, r.stderr
        return r
    run.folder = tmp_path/"smoke"/"33_scaled_dit"
    run.folder.mkdir(parents=True)
    return run

def test_data_that_cannot_be_had(stage): refused(stage("--set", "data=cifar10"), "cifar10/train cannot be had", "FMNB_DATA_DIR")

def test_corrupt_image(stage, tmp_path):
    (tmp_path/"own"/"a").mkdir(parents=True)
    for i in range(3): Image.fromarray(np.full((16, 16), 80 * i, np.uint8)).save(tmp_path/"own"/"a"/f"{i}.png")
    for i in (0, 1): (tmp_path/"own"/"a"/f"{i}.png").write_bytes((tmp_path/"own"/"a"/f"{i}.png").read_bytes()[:45])       # one of the three is held out
    refused(stage("--set", f"data={tmp_path/'own'}"), ".png", "not a whole image")

def test_images_of_one_class_teach_no_judge(stage, tmp_path):
    (tmp_path/"own").mkdir()
    for i in range(20): Image.fromarray(np.full((16, 16), 10 * i, np.uint8)).save(tmp_path/"own"/f"{i}.png")
    refused(stage("--set", f"data={tmp_path/'own'}", only="32", sets=()), "all of one class", "32.extractor=effnet")

def test_patches_that_do_not_tile(stage): refused(stage("--set", "patch=5"), "patches of 5 do not tile images of 16 pixels")

def test_truncated_checkpoint(stage):
    (stage.folder/"train.state.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{\"half")
    refused(stage(), "train.state.safetensors", "damaged")

def test_checkpoint_of_another_architecture(stage):
    state = train_state(load("digits", "train", size=16, n=8), DiTConfig(size=16, width=48, heads=2, depth=1), TrainConfig(steps=5))
    state.save(stage.folder/"train.state.safetensors")
    refused(stage(), "was made with", "--force")
