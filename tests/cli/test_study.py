import subprocess
import sys

import pytest

from chainlift.study.plan_file import load_plan, parse_plan


def chainlift(*arguments, cwd):
    return subprocess.run([sys.executable, "-m", "chainlift", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["quick", "seed"])
def test_init_writes_a_plan_that_is_the_shipped_one_explained(name, tmp_path):
    shown = chainlift("study", "init", name, cwd=tmp_path)
    assert shown.returncode == 0
    assert shown.stderr == ""
    assert parse_plan(shown.stdout) == load_plan(name)
    assert '\n# virtual size of the disk\n# allowed: "256M" to "65536G"\nsize = ' in shown.stdout


@pytest.mark.parametrize("verb", ["run", "build"])
def test_a_plan_that_does_not_hold_is_one_line_and_status_2(verb, tmp_path):
    (tmp_path / "my.toml").write_text('name = "x"\nlengths = [1]\nlenght = 3\n[chain]\nlength = 1\nsize = "20G"\n')
    said = chainlift("study", verb, "my.toml", cwd=tmp_path)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("chainlift: my.toml: lenght: there is no such key; allowed here: name, lengths, ")
    assert said.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["my.toml"]


def test_a_qemu_that_is_not_there_is_refused_before_anything_is_made(tmp_path):
    plan = chainlift("study", "init", cwd=tmp_path).stdout
    (tmp_path / "my.toml").write_text(plan.replace('["host"]', '["/no/qemu"]'))
    said = chainlift("study", "run", "my.toml", "--out", "out", "--chains", "chains", cwd=tmp_path)
    assert said.returncode == 2
    assert "/no/qemu: no such file or directory" in said.stderr
    assert said.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["my.toml"]


def test_results_that_are_not_there_are_refused(tmp_path):
    said = chainlift("study", "report", "nothing", cwd=tmp_path)
    assert said.returncode == 2
    assert said.stderr == "chainlift: nothing: is not a result directory: it has no plan.toml\n"
