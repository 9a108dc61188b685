"A student on the disk answers `fmnb_sample`, and says in one sentence what it cannot do."
import json
import pytest, torch
from PIL import Image
from fmnb.core import stage_dir
from fmnb.dit import DiT, DiTConfig, save_dit
from fmnb.dmd import load_generator
from fmnb.runner import sample_cli

@pytest.fixture
def trained(tmp_path, monkeypatch):
    "The run folders of a tiny teacher and its four-step student, with weights that are not zero."
    monkeypatch.setenv("FMNB_RUNS", str(tmp_path)); torch.manual_seed(0)
    for stage, file in (("33_scaled_dit", "ema"), ("40_dmd", "student")):
        net = DiT(DiTConfig(size=8, patch=4, width=16, heads=2, depth=1)); [torch.nn.init.normal_(p, std=.1) for p in net.parameters()]
        save_dit(stage_dir(stage, "tiny")/f"{file}.safetensors", net, n_steps=4)
    (stage_dir("33_scaled_dit", "tiny")/"config.json").write_text(json.dumps(dict(sample_steps=3, w=2.0)))
    return tmp_path

def run(*args):
    with pytest.raises(SystemExit) as e: sample_cli(["--profile", "tiny", *args])
    return e.value.code

def test_student_samples(trained, capsys):
    for steps in (4, 2, 1):
        out = trained/f"{steps}.png"
        assert run("--model", "student", "--steps", str(steps), "--n", "5", "--out", str(out)) == 0 and f"5 samples of student (tiny) in {steps} steps" in capsys.readouterr().out
        assert min(Image.open(out).size) > 8
    assert (trained/"4.png").read_bytes() != (trained/"1.png").read_bytes()
    default = load_generator("tiny", "student"); y = torch.arange(5)
    assert torch.equal(default.sample(y), default.sample(y, 4)) and not torch.equal(default.sample(y), default.sample(y, 4, seed=1))

def test_refusals(trained, capsys):
    for args, says in ((("--model", "student", "--steps", "3"), "3 does not divide 4"), (("--model", "student", "--steps", "8"), "8 does not divide 4"), (("--model", "student", "--w", "2"), "guidance built in"),
                       (("--model", "nobody"), "no model 'nobody'"), (("--model", "dmdr"), "run the stage that makes it first")):
        assert run(*args, "--out", str(trained/"x.png")) == 2
        err = capsys.readouterr().err
        assert says in err and len(err.strip().splitlines()) == 1 and not (trained/"x.png").exists()
