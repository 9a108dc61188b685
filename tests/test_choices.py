"The page of the ablation whichever groups of rows are asked for: the base row, which all others are compared with, is always among them."
import json
import pytest
from fmnb import runner
from fmnb.core import project_root, upstream

@pytest.mark.parametrize("groups", ["baseline", "rl"])
def test_any_groups(groups, tmp_path, monkeypatch):
    (tmp_path/"smoke").mkdir()
    for stage in ("32_evaluation", "33_scaled_dit"): (tmp_path/"smoke"/stage).symlink_to(upstream(stage, "smoke"))
    monkeypatch.setenv("FMNB_RUNS", str(tmp_path)); monkeypatch.delenv("FMNB_LOCKED", raising=False)
    runner.run("smoke", only="43", sets=[f"groups=[{groups}]", "seeds=1"], root=project_root())
    rows = {r["name"] for r in json.loads((tmp_path/"smoke"/"43_distillation_choices"/"results.json").read_text())["rows"]}
    assert {"hybrid_fd", "euler_2_fd" if groups == "baseline" else "grpo_fd"} <= rows and "coupled_fd" not in rows
