"""Arrays have the shapes that the annotations of the numpy code promise.

Checking every call multiplies the time of small problems, so the tests of the annotated modules run once more with the
checks, in a process of their own.
"""

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
TESTS = ["aent/test_entropy.py", "toymdp/test_mdp.py", "toymdp/test_propositions.py"]
MODULES = ["aent", "toymdp.mdp", "toymdp.theory.bounds", "toymdp.theory.attacks"]
CHECKER = "beartype.beartype"
EVERYTHING_ELSE = "not holds and not noticed and not control and not finite_numbers"  # than a whole `verify`


def test_entropies_exact_quantities_and_bounds_keep_to_their_shapes() -> None:
    hook = f"--jaxtyping-packages={','.join([*MODULES, CHECKER])}"
    files = [str(FOLDER / name) for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", hook, "-k", EVERYTHING_ELSE, *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]


def test_an_array_of_another_kind_is_noticed() -> None:
    code = f"""
from jaxtyping import install_import_hook
install_import_hook({MODULES}, {CHECKER!r})
from toymdp import mdp, suite
mdp.softmax(suite.make("smoke-bandit", 0).mdp, "logits")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "TypeCheckError" in done.stderr
