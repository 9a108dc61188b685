"The stages of distillation from outside: whichever groups of rows the ablation is asked for, and parameters that cannot work."
import json, subprocess, sys
from pathlib import Path
import pytest
from fmnb import runner
from fmnb.core import UserError, project_root, upstream

@pytest.fixture
def stages(tmp_path, monkeypatch):
    "A run folder that knows the smoke profile's judge, teacher and student, and a way to run a stage in it."
    monkeypatch.chdir(Path(__file__).resolve().parent.parent); (tmp_path/"smoke").mkdir()
    for stage in ("32_evaluation", "33_scaled_dit", "40_dmd"): (tmp_path/"smoke"/stage).symlink_to(upstream(stage, "smoke"))
    monkeypatch.setenv("FMNB_RUNS", str(tmp_path)); monkeypatch.delenv("FMNB_LOCKED", raising=False)
    return tmp_path/"smoke", lambda only, *sets: runner.run("smoke", only=only, sets=sets, root=project_root())

@pytest.mark.parametrize("groups", ["baseline", "rl"])
def test_any_groups(groups, stages):
    "The base row, which all others are compared with, is always among them."
    folder, run = stages; run("43", f"groups=[{groups}]", "seeds=1")
    rows = {r["name"] for r in json.loads((folder/"43_distillation_choices"/"results.json").read_text())["rows"]}
    assert {"hybrid_fd", *(("euler_2_fd", "notebook40_4_fd") if groups == "baseline" else ("grpo_fd",))} <= rows and "coupled_fd" not in rows

@pytest.mark.parametrize("stage, wrong, says", [("41", "lam=-1", "must not be negative"), ("43", "alpha=0.5", "alpha >= 1"), ("43", "groups=[speed]", "no group 'speed'")])
def test_refusals(stage, wrong, says, stages):
    folder, run = stages
    with pytest.raises(UserError, match=says) as e: run(stage, wrong)
    assert "\n" not in str(e.value) and not list(folder.glob("4[13]*/**/*.safetensors"))          # nothing was trained first

def test_snapshots_as_the_page_judged_them(stages):
    "`benchmarks/snapshots.py` gives a training's averages the distance that its own page gives them."
    folder, _ = stages; root = Path(__file__).resolve().parent.parent; script = [sys.executable, "benchmarks/snapshots.py"]
    assert subprocess.run([*script, str(folder/"33_scaled_dit"), "--name", "looked"], cwd=root, capture_output=True).returncode == 0
    ours, page = ({r["name"]: r["value"] for r in json.loads((folder/stage/"results.json").read_text())["rows"] if r["name"].startswith("fd_at_")} for stage in ("looked", "33_scaled_dit"))
    assert ours == pytest.approx(page, rel=1e-3) and page
    r = subprocess.run([*script, str(folder/"32_evaluation")], cwd=root, capture_output=True, text=True); assert r.returncode == 2 and "holds no ema_" in r.stderr
