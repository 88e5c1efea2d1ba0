"""Cases that seeds make, and the rule that each is held to.

`make test` runs a quarter of the seeds of each kind. All of them: `FUZZ=all pytest tests/test_fuzz*.py`;
one of them alone, as a failure names it: `FUZZ=1234 pytest tests/test_fuzz.py -k tables`.
"""
import dis
import inspect
import os
import random
import signal
from contextlib import contextmanager
from pathlib import Path
import pytest
import finetune_nb

FORESEEN = ValueError, TypeError, OSError, ModuleNotFoundError, FloatingPointError
package = Path(finetune_nb.__file__).parent
patience = 60 # seconds, against hanging, not slowness: another program may keep the machine busy
wanted = os.environ.get("FUZZ", "")


# The rule

def foreign(error):
    "Why an error is not one of ours, which a `raise` of this package raises with a sentence; empty: it is"
    trace = error.__traceback__
    while trace.tb_next: trace = trace.tb_next
    code = trace.tb_frame.f_code
    if not isinstance(error, FORESEEN): return f"{type(error).__name__} is no error that we foresee"
    if package not in Path(code.co_filename).parents: return f"it comes from {code.co_filename}"
    if dis.opname[code.co_code[trace.tb_lasti]] != "RAISE_VARARGS": return "Python raised it, and no `raise` of ours"
    if len(str(error)) <= 20 or " " not in str(error): return "it is no sentence"
    return ""


def ours(call):
    "What `call` gives, or None if it raises an error of ours"
    try: return call()
    except Exception as error:
        if why := foreign(error): raise AssertionError(f"{type(error).__name__}: {error} ({why})") from error


# The cases

def hung(*_): raise TimeoutError(f"no answer in {patience} s")


@contextmanager
def limited():
    "At most so long, where the system can interrupt us"
    if not hasattr(signal, "setitimer"):
        yield
        return
    before = signal.signal(signal.SIGALRM, hung)
    signal.setitimer(signal.ITIMER_REAL, patience)
    try: yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def blocks(count, most=50):
    "The seeds that are to run, of `count`, in blocks"
    seeds = range(int(wanted), int(wanted) + 1) if wanted.isdecimal() else range(count if wanted else count // 4)
    return [seeds[i:i + most] for i in range(0, len(seeds), most)]


def named(seeds): return f"{seeds[0]}-{seeds[-1]}"


def fuzz(count):
    "A test of `count` cases; each gets random numbers of its own as `rng`, and is named by its seed"
    def decorate(case):
        def test(seeds, **fixtures):
            for seed in seeds:
                try:
                    with limited(): case(random.Random(f"{case.__name__} {seed}"), **fixtures)
                except Exception as error: raise AssertionError(f"seed {seed} of {case.__name__}: {error}") from error
        names = ["seeds", *list(inspect.signature(case).parameters)[1:]]
        kinds = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
        test.__signature__ = inspect.Signature(kinds)
        test.__name__, test.__doc__, test.__module__, test.case = case.__name__, case.__doc__, case.__module__, case
        return pytest.mark.parametrize("seeds", blocks(count), ids=named)(test)
    return decorate
