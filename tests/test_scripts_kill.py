"""scripts/kill.py: commands killed at their writes, on a full disk and started twice leave nothing half."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "kill.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_nothing_half_is_left_by_some_commands():
    line = [sys.executable, str(SCRIPT), "head", "export", "--most", "2", "--twice", "2"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    last = done.stdout.splitlines()[-1]  # 18 where no disk can be mounted
    pattern = "12 killed, (27|18) full disk, 6 started twice, [0-6] refused by name of process and host: 0 findings"
    assert re.fullmatch(pattern, last), done.stdout + done.stderr
    assert done.returncode == 0
