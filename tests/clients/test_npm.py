"""The npm packages `openai` and `ollama` against a node, over each kind of backend. The tests themselves are in npm/*.test.mjs."""

import os
import re
import shutil
import subprocess

import pytest

import servers
from conftest import or_skip

pytestmark = pytest.mark.others
LIMIT_S = 300


@pytest.mark.parametrize("package", ["openai", "ollama"])
def test_every_test_of_the_package_passes(package, served, model, embedder):
    folder = or_skip(servers.npm_folder)
    # Packages are found beside the file that imports them, and they are not installed in the repository.
    test = folder / f"{package}.test.mjs"
    shutil.copy2(servers.HERE / "npm" / test.name, test)
    known = "no" if served.is_openai_behind or served.worker else "yes"
    named = "no" if served.worker else "yes"
    done = subprocess.run(
        [folder / "node", "--test", "--test-reporter=tap", test],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"BOMBUS_API": served.api, "MODEL": model, "EMBEDDER": embedder, "KNOWN": known, "NAMED": named},
        timeout=LIMIT_S,
    )
    if done.returncode != 0:
        pytest.fail(f"{done.stdout[-8000:]}\n{done.stderr[-2000:]}\nthe node's log ends with:\n{served.node.log()[-2000:]}", pytrace=False)
    passed = int(re.search(r"^# pass (\d+)$", done.stdout, re.MULTILINE).group(1))
    assert passed >= 9, "hardly any test ran"
