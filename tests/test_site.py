"The site: pages, links, nothing from another host; the README and what it shows."
import os, re, subprocess, sys
from pathlib import Path
import nbformat, pytest
from fmnb.site import prepare, problems, render

@pytest.fixture(scope="module")
def site(reported):
    os.chdir(reported.root)
    return render(reported.root, "smalldocs")

def test_pages_exist(site):
    pages = sorted(str(p.relative_to(site)) for p in site.rglob("*.html"))
    assert pages == ["index.html"] + [f"reports/digits/{n}.html" for n in ("10_first", "20_second", "30_page")]

def test_every_link_and_resource_is_local_and_there(site): assert problems(site) == []

def test_a_broken_page_would_be_seen(site, tmp_path):
    (tmp_path/"a.html").write_text('<img src="missing.png"><script src="https://cdn.example.org/x.js"></script><a href="#nowhere">x</a>')
    assert len(problems(tmp_path)) == 3

def test_navigation_follows_the_pipeline(site):
    text = (site/"reports"/"digits"/"30_page.html").read_text()
    at = [text.index(w) for w in ("Core &amp; data", ">First<", "Theory", ">Second<", "Transformer", ">Page<")]
    assert at == sorted(at) and "Caching" not in text               # a section without pages is left out

def test_page_is_readable(site):
    text = (site/"reports"/"digits"/"30_page.html").read_text()
    assert "secret" not in text and "#|" not in text and ":::" not in text
    assert "<details" in text and "visible" in text                  # exported code is folded
    assert 'alt="a red pixel"' in text and text.count("<math") == 2 and "$" not in re.sub(r"<(script|style|code).*?</\1>", "", text, flags=re.S)
    first = (site/"reports"/"digits"/"10_first.html").read_text()
    assert "parameters of this run" in first and 'class="parameters' in first and "seed 0" in first

def test_front_page_has_the_results(site):
    text = (site/"index.html").read_text()
    assert 'alt="a red pixel"' in text and "found " in text and ">double</td>" in text and "results_table(" not in text and 'href="reports/digits/30_page.html"' in text.replace("./", "")

def test_quarto_gets_the_same_notebooks(reported, tmp_path):
    "Quarto on PATH is called in the project, with the executed index in place; its filter is `prepare`."
    fake = tmp_path/"quarto"
    fake.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/called\ntest -f index.ipynb && mkdir -p _site && {sys.executable} nbs/quarto_filter.py < reports/digits/30_page.ipynb > {tmp_path}/out.ipynb && echo '<p>ok' > _site/index.html\n")
    fake.chmod(0o755)
    r = reported.run(module="site", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert r.returncode == 0 and (tmp_path/"called").read_text().split() == ["render", "."], r.err
    given = nbformat.read(tmp_path/"out.ipynb", as_version=4)
    assert given == prepare(nbformat.read(reported.root/"reports"/"digits"/"30_page.ipynb", as_version=4))
    assert any("code-fold: true" in c.source for c in given.cells) and "$x_t$" in given.cells[0].source       # Quarto does the math itself

def test_readme_check(reported, site):
    assert reported.run("--readme", "check", module="site").returncode == 0
    text = (reported.root/"README.md").read_text()
    assert "| double |" in text and "import" not in text
    picture = reported.root/"reports"/"pictures"/"digits-30_page-cell4.png"
    assert f"![a red pixel](reports/pictures/{picture.name})" in text and picture.read_bytes().startswith(b"\x89PNG")
    (reported.root/"README.md").write_text(text + "typed by hand\n"); picture.write_bytes(b"another picture")
    r = reported.run("--readme", "check", module="site")
    assert r.returncode == 1 and "run fmnb_site --readme write" in r.err and "README.md" in r.err and picture.name in r.err

def test_the_readme_s_python_runs(tmp_path):
    root = Path(__file__).resolve().parent.parent
    code = "\n".join(re.findall(r"^```python\n(.+?)^```", (root/"README.md").read_text(), re.M | re.S)) + "print(tuple(images.shape), images.isfinite().all().item(), nfe)"
    r = subprocess.run([sys.executable, "-c", code], cwd=root, env=os.environ | dict(FMNB_RUNS=str(tmp_path), FMNB_QUIET="1"), capture_output=True, text=True)
    assert r.stdout.strip() == "(10, 3, 32, 32) True 20", (r.stdout, r.stderr)
