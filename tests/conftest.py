import importlib.util, os, shutil, sys

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1" # several tests run at once; set before torch is imported

from pathlib import Path
import pytest

root = Path(__file__).resolve().parent.parent
not_ours = {".git", ".venv", "_proc", "_docs", "build", "dist", "__pycache__", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints", "install.log", ".gitconfig", "finetune_nb_run", ".venv-bench"}


def tree_files(top=root):
    "The files of the tree that are committed, relative to `top`"
    return sorted(p.relative_to(top) for p in _walk(top))


def _walk(folder):
    for path in folder.iterdir():
        if path.name in not_ours or path.suffix in (".egg-info", ".pyc"): continue
        if (path/"pyvenv.cfg").exists() or path.is_symlink(): continue
        if path.is_dir(): yield from _walk(path)
        else: yield path


def load(path):
    "The module that the script at `path` is"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


lessons = load(root/"nbs"/"lessons.py")


@pytest.fixture
def tree(tmp_path):
    "A copy of the tree, to change at will"
    for path in tree_files():
        (tmp_path/path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root/path, tmp_path/path)
    return tmp_path


@pytest.fixture(scope="session")
def quiet():
    "The environment that every child process gets: one thread, no network for models, this tree's module"
    given = {k: v for k, v in os.environ.items() if k != "IN_TEST"}
    return {**given, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "Agg", "PYTHONPATH": str(root)}
