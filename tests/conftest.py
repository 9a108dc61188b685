"A tiny project of its own: two stages, one page, one profile; the commands run in it as they do in a real checkout."
import io, json, os, subprocess, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
import nbformat, pytest
from fmnb import runner, site

# The first stage does without the library, so that its kernel starts in a second; the second one uses it.
STAGE_A = ["width = 4\nlr = 0.1\nprofile = 'smoke'\nseed = 0", "import json, os, pathlib\nclass UserError(Exception): pass",
           "run = pathlib.Path(os.environ.get('FMNB_RUNS', '../runs'), profile, '10_first')\nopen(run/'calls', 'a').write('x')",
           "if width == 13: raise ValueError('thirteen\\nis too many')\nif width == 14:\n    os.write(2, b'a library complains'); import time; time.sleep(1); raise UserError('fourteen will not do; use less')",
           "rows = [dict(name='area', value=width ** 2, unit='px')]\n(run/'results.json').write_text(json.dumps(dict(stage='10_first', provenance=dict(seed=seed, wall_s=0.1), rows=rows)))"]
STAGE_B = ["profile = 'smoke'\nseed = 0", "import json\nfrom fmnb.core import Run, upstream", "run = Run('20_second', profile, seed)\nopen(run/'calls', 'a').write('x')",
           "area = json.loads((upstream('10_first', profile)/'results.json').read_text())['rows'][0]['value']\nrun.row('double', 2 * area); run.finish()"]
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

def notebook(path, code, title, stage=True):
    "Write a notebook: a title, then code cells; the first is the parameters of a stage."
    new = nbformat.v4
    cells = [new.new_markdown_cell(f"# {title}\n> One line about it, with $x_t$.")] + [new.new_code_cell(c) for c in code]
    if stage: cells[1].metadata["tags"] = ["parameters"]
    for i, c in enumerate(cells): c.id = f"cell{i}"
    nbformat.write(new.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", display_name="python3", language="python"))), path)

class Project:
    "A project folder and a way to run its commands."
    def __init__(self, root):
        self.root, real = root, Path(__file__).resolve().parent.parent
        (root/"nbs"/"profiles").mkdir(parents=True); (root/"settings.ini").touch()
        notebook(root/"nbs"/"10_first.ipynb", STAGE_A, "First")
        notebook(root/"nbs"/"20_second.ipynb", STAGE_B, "Second")
        notebook(root/"nbs"/"30_page.ipynb", ["#| hide\nsecret = 1", "#| export\ndef visible(): return 1", "from base64 import b64decode\nfrom IPython.display import display, Markdown",
                 f"display({{'image/png': b64decode('{PIXEL}')}}, metadata={{'image/png': {{'alt': 'a red pixel'}}}}, raw=True); display(Markdown('*found $y=1$*'))"], "Page", stage=False)
        notebook(root/"nbs"/"index.ipynb", ["from IPython.display import Markdown\nfrom fmnb.site import picture, results_table", "picture('digits/30_page', 'cell4')", "Markdown(results_table('digits') + '\\n\\n[a page](nbs/30_page.ipynb)')"], "Tiny", stage=False)
        (root/"nbs"/"profiles"/"digits.yaml").write_text("about: a tiny chain\nstages: {10_first: {width: 5}, 20_second: {}}\n")
        (root/"nbs"/"profiles"/"fast.yaml").write_text("about: without pages\npages: false\nstages: {10_first: {}, 20_second: {}}\n")
        for name in ("_quarto.yml", "nbs/site.css", "nbs/favicon.svg", "nbs/quarto_filter.py"): (root/name).write_text((real/name).read_text())

    def start(self, module, *args, **env):
        "Start a command as a process of its own."
        env = {k: v for k, v in os.environ.items() if k not in ("FMNB_RUNS", "FMNB_LOCKED")} | dict(OMP_NUM_THREADS="1") | env
        return subprocess.Popen([sys.executable, "-m", f"fmnb.{module}", *args], cwd=self.root, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *args, module="runner", **env):
        "Run a command here, as its entry point would, and return exit code, stdout and stderr."
        command = {"runner": runner.run_cli, "site": site.site_cli}[module]
        with pytest.MonkeyPatch.context() as mp, redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
            mp.chdir(self.root); mp.delenv("FMNB_RUNS", raising=False); mp.delenv("FMNB_LOCKED", raising=False); mp.setenv("OMP_NUM_THREADS", "1")
            for k, v in env.items(): mp.setenv(k, v)
            try: code = command(list(args))
            except SystemExit as e: code = e.code
        return SimpleNamespace(returncode=code or 0, out=out.getvalue(), err=err.getvalue())

    def calls(self, stage, profile="fast"):
        "How often a stage has been executed."
        f = self.root/"runs"/profile/stage/"calls"
        return len(f.read_text()) if f.exists() else 0

    def rows(self, stage, profile="fast", folder="runs"):
        path = self.root/"runs"/profile/stage/"results.json" if folder == "runs" else self.root/"reports"/profile/"results"/f"{stage}.json"
        return {r["name"]: r["value"] for r in json.loads(path.read_text())["rows"]}

@pytest.fixture
def project(tmp_path): return Project(tmp_path)

@pytest.fixture(scope="session")
def reported(tmp_path_factory):
    "A tiny project after `fmnb_run --profile digits`."
    p = Project(tmp_path_factory.mktemp("reported"))
    r = p.run("--profile", "digits")
    assert r.returncode == 0, r.err
    p.printed = r.out
    return p
