"fmnb_curate: killed and resumed, on Ray and in processes of its own, and what it refuses."
import importlib.util, io, json, os, shutil, signal, subprocess, sys, tempfile, time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
import numpy as np, pandas as pd, pyarrow as pa, pyarrow.parquet as pq, pytest
from fmnb.curation import wild_pool
from fmnb.data import load, to_uint8
from fmnb.engine import curate_cli

def start(*args, **env):
    return subprocess.Popen([sys.executable, "-m", "fmnb.engine", *map(str, args)], env=os.environ | dict(OMP_NUM_THREADS="1") | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

def done(p):
    out, err = p.communicate(timeout=600)
    assert p.returncode == 0, err
    return out

def here(*args):
    "Exit code and stderr of the command in this process."
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()) as err, pytest.raises(SystemExit) as e: curate_cli([str(a) for a in args])
    return e.value.code, err.getvalue()

def refused(args, *words):
    code, err = here(*args)
    assert code == 2 and err.startswith("fmnb: ") and len(err.strip().splitlines()) == 1, (code, err)
    for w in words: assert w in err, err

def outputs(out): return {f.name: f.read_bytes() for f in [*sorted(Path(out).glob("part-*")), Path(out)/"manifest.json", Path(out)/"datasheet.html"]}

@pytest.fixture(scope="module")
def files(tmp_path_factory):
    "A pool of 230 spoilt digits as parquet, and what an undisturbed run makes of it."
    tmp = tmp_path_factory.mktemp("engine"); d = load("digits", "train", n=200); pool, _ = wild_pool(to_uint8(d.x).numpy(), d.y, 10)
    pq.write_table(pa.table(dict(image=[i.data for i in pool], label=[i.label for i in pool])), tmp/"pool.parquet", row_group_size=50)
    done(start(tmp/"pool.parquet", tmp/"whole", "--chunk", 5))
    return tmp

def test_killed_run_does_the_rest(files):
    out = files/"killed"; p = start(files/"pool.parquet", out, "--chunk", 5); shards = lambda: {f.name: f.stat().st_mtime_ns for f in (out/"work").glob("measure-*.parquet")}
    while not len(shards()) > 3: assert p.poll() is None; time.sleep(.001)
    p.send_signal(signal.SIGKILL); p.communicate(); before = shards()
    assert 3 < len(before) < 46
    done(start(files/"pool.parquet", out, "--chunk", 5))
    after = shards()
    assert len(after) == 46 and {k: after[k] for k in before} == before                              # none was written again
    assert json.loads((out/"run.json").read_text())["measured"] == 46 - len(before)
    assert outputs(out) == outputs(files/"whole")

def test_ray_decides_the_same_and_is_gone_afterwards(files):
    pytest.importorskip("ray")
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")                                                   # a short path: Ray's sockets lie below it
    done(start(files/"pool.parquet", files/"ray", "--chunk", 40, "--runner", "ray", RAY_TMPDIR=folder, RAY_ADDRESS=""))
    done(start(files/"pool.parquet", files/"native", "--chunk", 40))
    assert json.loads((files/"ray"/"run.json").read_text())["runner"] == "ray" and outputs(files/"ray") == outputs(files/"native")
    left = lambda: [p for p in Path("/proc").glob("[0-9]*/cmdline") if folder.encode() in read(p)]
    for _ in range(100):
        if not left(): break
        time.sleep(.1)
    assert not left()
    shutil.rmtree(folder, ignore_errors=True)

def read(path):
    try: return path.read_bytes()
    except OSError: return b""

def test_processes_decide_the_same(files):
    done(start(files/"pool.parquet", files/"two", "--chunk", 5, "--workers", 2))
    assert outputs(files/"two") == outputs(files/"whole")

def test_every_undecodable_file_is_quarantined_with_a_reason(tmp_path):
    rng, d = np.random.default_rng(0), load("digits", "train", n=30); pool, truth = wild_pool(to_uint8(d.x).numpy(), d.y, 10, broken=0, quality=0, foreign=0, wrong_label=0, exact=0, near=0)
    png = [i.data for i in pool]; bad = [rng.bytes(int(n)) for n in rng.integers(0, 400, 60)] + [p[:int(rng.integers(0, 60))] for p in png] + [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF\x10\0\0\0WEBP"]
    (tmp_path/"in"/"caf\udce9").mkdir(parents=True)                                                     # a name that is no text
    for i, data in enumerate(png + bad): (tmp_path/"in"/"caf\udce9"/f"{i:03}").write_bytes(data)
    os.symlink("nowhere", tmp_path/"in"/"dangling")
    assert here(tmp_path/"in", tmp_path/"out", "--chunk", "16")[0] == 0
    t = pd.concat([pd.read_parquet(f) for f in sorted((tmp_path/"out").glob("part-*"))])
    assert len(t) == len(png) + len(bad) and (t.decision[len(png):] == "quarantine").all() and t.reason[len(png):].str.startswith("unreadable: ").all() and (t.step[:len(png)] != "decode").all()

def test_what_is_refused(files, tmp_path, monkeypatch):
    src, whole = files/"pool.parquet", files/"whole"; kept = outputs(whole); (tmp_path/"empty").mkdir()
    refused([tmp_path/"nowhere", tmp_path/"o"], "nowhere"); refused([tmp_path/"empty", tmp_path/"o"], "holds no files")
    pq.write_table(pa.table(dict(a=[1])), tmp_path/"a.parquet"); refused([tmp_path/"a.parquet", tmp_path/"o"], "no column of image bytes", "a")
    (tmp_path/"b.parquet").write_bytes(src.read_bytes()[:-40]); refused([tmp_path/"b.parquet", tmp_path/"o"], "no whole parquet file")
    refused([src, tmp_path/"o", "--column", "img"], "'img'", "image, label"); refused([src, tmp_path/"o", "--runner", "dask"], "no runner 'dask'"); refused([src, tmp_path/"o", "--chunk", 0], "at least 1")
    refused([src, files], "lies in" if files == src else "that no fmnb_curate wrote")
    refused([src, whole, "--chunk", 6], "other settings", "--force")
    shutil.copy(src, tmp_path/"pool.parquet"); refused([tmp_path/"pool.parquet", whole, "--chunk", 5], "another input", "--force")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "ray" else find(name, *a)); refused([src, tmp_path/"o", "--runner", "ray"], "fmnb[cluster]")
    assert not (tmp_path/"o"/"manifest.json").exists() and outputs(whole) == kept                       # nothing is lost

def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit): curate_cli(["--help"])
    assert "fmnb_curate photos/ curated/" in capsys.readouterr().out
