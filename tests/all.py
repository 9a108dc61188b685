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

r = subprocess.run([sys.executable, "-m", "pytest", "-q", "tests"], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
print(r.stdout, flush=True)
count = {k: int(n) for n, k in re.findall(r"(\d+) (passed|failed|error)", r.stdout.splitlines()[-1] if r.stdout.strip() else "")}
if r.returncode and not (count.get("failed") or count.get("error")): count["failed"] = 1
failed += ["pytest"] * (count.get("failed", 0) + count.get("error", 0))
print(f"{len(passed) + count.get('passed', 0)} passed, {len(failed)} failed")
sys.exit(bool(failed))
