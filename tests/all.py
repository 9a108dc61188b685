"Everything `make test` checks, ending in one line `N passed, N failed`."
import os, re, subprocess, sys, tempfile, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

root = Path(__file__).resolve().parent.parent
passed, failed = [], []

def check(name, *command, **env):
    "Run a command in the project, count it, and show its output when it fails."
    start = time.time()
    r = subprocess.run(command, cwd=root, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ok = r.returncode == 0
    print(f"{'ok    ' if ok else 'FAILED'}  {name}  {time.time() - start:.1f} s", flush=True)
    if ok: passed.append(name)
    else: failed.append(name); print(r.stdout[-6000:], flush=True)
    return r

inside_git = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], cwd=root, capture_output=True).returncode == 0
check("nbdev_export", "nbdev_export")
check("nbdev_clean", "nbdev_clean")
if inside_git: check("fmnb/ and nbs/ are what export and clean make of them (else: git add what they changed)", "git", "diff", "--exit-code", "--stat", "--", "fmnb", "nbs")
check("README.md is what nbs/index.ipynb gives", "fmnb_site", "--readme", "check")

def lane(notebooks, runs):
    for nb in notebooks: check(f"nbs/{nb.name}", "nbdev_test", "--path", str(nb), "--n_workers", "0", "--do_print", FMNB_RUNS=runs, FMNB_QUIET="1", OMP_NUM_THREADS="1")

# fresh run folders: the smoke profile from nothing, the stages that build on one another in one lane, the theory and the tools in another
with tempfile.TemporaryDirectory() as runs, ThreadPoolExecutor(2) as pool:
    nbs = sorted((root/"nbs").glob("*.ipynb"))
    chain = [nb for nb in nbs if nb.name[0] in "1345"]
    for done in [pool.submit(lane, part, runs) for part in (chain, [nb for nb in nbs if nb not in chain])]: done.result()

# the other tests, two files at a time, the longest first; most of their time they wait for processes of their own
def count(file):
    "How many tests of a file passed and failed; a file that pytest could not run counts as one that failed."
    r = subprocess.run([sys.executable, "-m", "pytest", "-q", str(file)], cwd=root, env=os.environ | dict(OMP_NUM_THREADS="1"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    print(r.stdout, flush=True)
    n = {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed|error)", r.stdout.splitlines()[-1] if r.stdout.strip() else "")}
    bad = n.get("failed", 0) + n.get("error", 0)
    return n.get("passed", 0), bad or int(r.returncode != 0)

slow = ["test_distillation.py", "test_training.py", "test_engine.py", "test_runner.py"]
files = sorted((root/"tests").glob("test_*.py"), key=lambda p: (slow.index(p.name) if p.name in slow else len(slow), -p.stat().st_size))
with ThreadPoolExecutor(2) as pool: counts = list(pool.map(count, files))
good, bad = (sum(c) for c in zip(*counts))
failed += ["pytest"] * bad
print(f"{len(passed) + good} passed, {len(failed)} failed")
sys.exit(bool(failed))
