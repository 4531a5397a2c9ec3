"""A stand-in for Slurm's `srun`: checks its options, queues, and runs one command as a job on another machine would be.

The job has a session, an environment and a working directory of its own, and its output comes back line by line, as
Slurm sends it. The folder SRUN_FOLDER rules it: while it holds a file `hold` the job is queued; `starts` counts the
jobs that were asked for, `job` has the process id of the one that runs, and what `greeting` holds is printed first.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

KNOWN = ("--gres=", "--mem=", "--ntasks=", "--time=")
"""Options that it takes."""


def forward_input(job: "subprocess.Popen[bytes]") -> None:
    """Give what comes in to the job, and close its input when there is no more."""
    assert job.stdin is not None
    try:
        while content := os.read(0, 2**16):
            job.stdin.write(content)
        job.stdin.close()
    except BrokenPipeError:
        return


def main() -> int:
    """Run `srun [OPTIONS] COMMAND ...`; return the job's exit code."""
    folder, command = Path(os.environ["SRUN_FOLDER"]), sys.argv[1:]
    tasks = "1"
    while command and command[0].startswith("-"):
        if not command[0].startswith(KNOWN):
            print(f"srun: unrecognized option '{command[0]}'", file=sys.stderr, flush=True)
            return 1
        tasks = command[0].removeprefix("--ntasks=") if command[0].startswith("--ntasks=") else tasks
        command.pop(0)
    with (folder / "starts").open("a") as file:
        file.write("x")
    print("srun: job 7 queued and waiting for resources", file=sys.stderr, flush=True)
    while (folder / "hold").exists():
        time.sleep(0.02)
    if (folder / "greeting").exists():
        sys.stdout.buffer.write((folder / "greeting").read_bytes())
        sys.stdout.flush()
    job = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": tasks},
        start_new_session=True,
        bufsize=0,
    )
    signal.signal(signal.SIGTERM, lambda *_: job.terminate())
    (folder / "job").write_text(str(job.pid))
    threading.Thread(target=forward_input, args=[job], daemon=True).start()
    assert job.stdout is not None
    for line in os.fdopen(job.stdout.fileno(), "rb", closefd=False):  # with a buffer
        sys.stdout.buffer.write(line)
        sys.stdout.flush()
    code = job.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
