from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

SCRIPT = """
import multiprocessing, os, time
from counterscan.bench.workers import end_with_parent

def work(_):
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1, initializer=end_with_parent) as pool:
        pool.map(work, [0])
"""


def test_workers_of_a_killed_run_end(tmp_path) -> None:
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    run = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    worker = int(run.stdout.readline())
    run.send_signal(signal.SIGKILL)
    run.wait()
    deadline = time.monotonic() + 30
    while _runs(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    ended = not _runs(worker)
    if not ended:
        os.kill(worker, signal.SIGKILL)
    assert ended


def _runs(pid: int) -> bool:
    """A zombie, which nobody has waited for, does not."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()
    return bool(state) and not state.startswith("Z")
