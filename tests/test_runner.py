"The runner's command line: what is skipped, what is refused, what a failure leaves behind."
import fcntl
from types import SimpleNamespace
import nbformat

def refused(r, *words):
    "Exit code 2 and one sentence on stderr that holds `words`."
    assert r.returncode == 2, (r.returncode, r.err)
    assert r.err.startswith("fmnb: ") and len(r.err.strip().splitlines()) == 1 and "Traceback" not in r.err, r.err
    for w in words: assert w in r.err, r.err

def test_chain_is_published(reported):
    assert reported.rows("20_second", "digits", "reports") == {"double": 50}
    names = sorted(p.name for p in (reported.root/"reports"/"digits").glob("*.ipynb"))
    assert names == ["10_first.ipynb", "20_second.ipynb", "30_page.ipynb"]
    lines = reported.printed.splitlines()
    assert [l.split()[0] for l in lines[:3]] == ["10_first", "20_second", "30_page"] and "area 25 px" in lines[0]
    assert "double" in lines[-1]                                    # the headline table at the end

def test_executed_copy_is_clean(reported):
    text = (reported.root/"reports"/"digits"/"10_first.ipynb").read_text()
    nb = nbformat.reads(text, as_version=4)
    assert str(reported.root) not in text and "papermill\"" not in text and "start_time" not in text and "widgets" not in nb.metadata
    assert any("width = 5" in c.source for c in nb.cells if "injected-parameters" in c.metadata.get("tags", []))

def test_skip_set_force(project):
    run = lambda *a: project.run("--profile", "fast", *a)
    assert run().returncode == 0 and (project.calls("10_first"), project.calls("20_second")) == (1, 1)
    again = run()
    assert again.out.count("done") == 2 and project.calls("10_first") == 1
    assert run("--only", "10", "--set", "width=6").returncode == 0 and project.calls("20_second") == 1       # a prefix; the other is left alone
    assert project.rows("10_first")["area"] == 36
    assert run("--set", "10.width=6").returncode == 0                # the input of the second has changed, its own parameters have not
    assert project.calls("10_first") == 2 and project.rows("20_second")["double"] == 72
    assert run("--only", "20", "--force").returncode == 0 and project.calls("20_second") == 1                # the folder is new

def test_changed_code_runs_again_and_comments_do_not(project):
    path = project.root/"nbs"/"10_first.ipynb"
    assert project.run("--profile", "fast", "--only", "10").returncode == 0
    nb = nbformat.read(path, as_version=4)
    nb.cells[-1].source = "# the area\n" + nb.cells[-1].source; nbformat.write(nb, path)
    assert "done" in project.run("--profile", "fast", "--only", "10").out
    nb.cells[-1].source = nb.cells[-1].source.replace("** 2", "** 3"); nbformat.write(nb, path)
    assert project.run("--profile", "fast", "--only", "10").returncode == 0 and project.rows("10_first")["area"] == 64

def test_interrupted_runs_again(project):
    assert project.run("--profile", "fast", "--only", "10").returncode == 0
    (project.root/"runs"/"fast"/"10_first"/"done.json").write_text("{half")
    assert project.run("--profile", "fast", "--only", "10").returncode == 0 and project.calls("10_first") == 2

def test_bad_requests_run_nothing(project):
    refused(project.run("--profile", "digit"), "no profile 'digit'", "did you mean 'digits'")
    refused(project.run("--profile", "fast", "--set", "widht=5"), "'widht'", "did you mean 'width'")
    refused(project.run("--profile", "fast", "--set", "width=wide"), "whole number", "'wide'")
    refused(project.run("--profile", "fast", "--only", "15"), "--only 15")
    profile = project.root/"nbs"/"profiles"/"fast.yaml"
    for text, says in [("{10_first: {widht: 5}}", "did you mean 'width'"), ("{10_first: {lr: much}}", "a number"), ("{10_frst: {}}", "did you mean '10_first'"), ("{10_first: ", "no valid YAML")]:
        profile.write_text("about: bad\nstages: " + text)
        refused(project.run("--profile", "fast"), says)
    assert not (project.root/"runs").exists()

def test_package_without_the_project(project, tmp_path_factory):
    project.root = tmp_path_factory.mktemp("elsewhere")
    for module in ("runner", "site"): refused(project.run(module=module), "give the command inside a clone")
    assert not list(project.root.iterdir())

def test_failing_stage_stops_the_chain(project):
    r = project.run("--profile", "fast", "--set", "width=13")
    assert r.returncode == 1 and "10_first failed in code cell 5" in r.err and "ValueError: is too many" in r.err and "Traceback" not in r.err
    kept = nbformat.read(project.root/"runs"/"fast"/"10_first"/"notebook.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in kept.cells for o in c.get("outputs", []))
    assert project.calls("20_second") == 0 and not (project.root/"reports").exists()
    assert project.run("--profile", "fast", "--only", "10").returncode == 0          # and the same command works once it is mended

def test_a_stage_can_tell_the_user(project):
    p = project.start("runner", "--profile", "fast", "--set", "width=14"); _, err = p.communicate(timeout=120)          # the stage's library complains on the way
    refused(SimpleNamespace(returncode=p.returncode, err=err), "fourteen will not do; use less")

def test_missing_input_is_said(project):
    refused(project.run("--profile", "fast", "--only", "20"), "needs 10_first of profile fast first")

def test_second_run_is_refused(project):
    lock = project.root/"runs"/"fast"/".lock"
    lock.parent.mkdir(parents=True)
    with open(lock, "a") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        refused(project.run("--profile", "fast"), "another run of profile fast")
        waiting = project.start("runner", "--profile", "fast", "--only", "10", "--wait")
    assert waiting.communicate(timeout=120) and waiting.returncode == 0              # a lock ends with its process

def test_run_folder_that_cannot_be_written(project):
    (project.root/"runs").write_text("a file where the folder should be")
    refused(project.run("--profile", "fast"), "cannot write")
    (project.root/"blocked"/"fast").mkdir(parents=True); (project.root/"blocked"/"fast"/"10_first").write_text("in the way")
    refused(project.run("--profile", "fast", FMNB_RUNS=str(project.root/"blocked")), "cannot write")

def test_pages_beside_stages(project):
    page = project.root/"nbs"/"30_page.ipynb"
    def run(*args): p = project.start("runner", "--profile", "digits", "--jobs", "2", *args); return (*p.communicate(timeout=240), p.returncode)
    out, err, code = run()
    assert code == 0 and not err and {l.split()[0] for l in out.splitlines()[:3]} == {"10_first", "20_second", "30_page"}, (out, err)
    assert (project.root/"reports"/"digits"/"30_page.ipynb").exists() and run()[0].count("done") == 3
    nb = nbformat.read(page, as_version=4); nb.cells[1].source += "\n1 / 0"; nbformat.write(nb, page)
    out, err, code = run("--force")
    assert code == 1 and "30_page failed" in err and "20_second" in out, (out, err)             # the stages go to their end
    assert run("--set", "width=13")[2] == 1                                                     # and a stage that fails stops the pages
    refused(project.run("--profile", "digits", "--jobs", "0"), "--jobs is 0")

def test_help_shows_an_example(project):
    for module in ("runner", "site"):
        p = project.start(module, "--help")
        out, _ = p.communicate(timeout=120)
        assert p.returncode == 0 and "example:" in out and "fmnb_" in out
