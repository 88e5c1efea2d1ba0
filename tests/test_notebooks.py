"""Every notebook's own tests, by nbdev's runner: a process for each, forked from one that has loaded the libraries."""
import os
import tempfile
from pathlib import Path
import pytest
from conftest import lessons, root
from processes import start


def run(notebook, log, scratch):
    "In a process of its own: what lessons write to temporary folders is hundreds of megabytes, and goes with it"
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2): os.dup2(file.fileno(), stream)
    os.chdir(root)
    tempfile.tempdir = os.environ["TMPDIR"] = scratch
    from nbdev.test import nbdev_test
    nbdev_test.__wrapped__(notebook, n_workers=0)


@pytest.mark.parametrize("notebook", [p.relative_to(root).as_posix() for p in lessons.notebooks()])
def test_notebook(notebook):
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        log = Path(scratch)/"log"
        process = start(run, notebook, log, scratch)
        process.join()
        said = log.read_text(encoding="utf-8")
    if process.exitcode: pytest.fail(f"{notebook}\n{said[-8000:]}", pytrace=False)
    assert said.strip().endswith("Success."), said
