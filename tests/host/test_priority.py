"""Who works beside a VM lets it go first."""

import os
import subprocess
import sys

SAY = "import os; from chainlift.host.priority import lower_priority; lower_priority(); print(os.nice(0))"


def test_others_go_first():
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True).stdout
    assert int(said) == min(os.nice(0) + 10, 19)
    classes = "lower_priority(); os.execvp('ionice', ['ionice'])"
    said = subprocess.run(
        [sys.executable, "-c", SAY.replace("lower_priority(); print(os.nice(0))", classes)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert said.split() == ["idle"]
