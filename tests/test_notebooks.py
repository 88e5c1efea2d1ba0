"""Every notebook's own tests, by nbdev's runner: a process for each."""
import subprocess
import sys
import tempfile
import pytest
from conftest import lessons, root


@pytest.mark.parametrize("notebook", [p.relative_to(root).as_posix() for p in lessons.notebooks()])
def test_notebook(notebook, quiet):
    call = "import sys; from nbdev.test import nbdev_test; nbdev_test.__wrapped__(sys.argv[1], n_workers=0)"
    # What lessons write to temporary folders is hundreds of megabytes.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        ran = subprocess.run([sys.executable, "-c", call, notebook], cwd=root, env={**quiet, "TMPDIR": scratch},
                             capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ran.returncode: pytest.fail(f"{notebook}\n{ran.stdout[-2000:]}\n{ran.stderr[-6000:]}", pytrace=False)
    assert ran.stdout.strip().endswith("Success."), ran.stdout + ran.stderr
