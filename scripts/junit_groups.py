"""Turns pytest's JUnit report into lines of `name, passed, failed, skipped, seconds`, one for each test file.

usage: junit_groups.py GROUP REPORT.xml PYTEST_EXIT_STATUS
"""

import collections
import pathlib
import sys
import xml.etree.ElementTree as ElementTree

PYTEST_OK, PYTEST_TESTS_FAILED = 0, 1


def main(group_name, report, status):
    groups = collections.defaultdict(lambda: [0, 0, 0, 0.0])
    if pathlib.Path(report).exists():
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            module = (case.get("classname") or case.get("name") or "collection").split(".")
            name = next((part for part in reversed(module) if part.startswith("test_")), "collection")
            group = groups[f"{group_name}: {name.removeprefix('test_')}"]
            failed = case.find("failure") is not None or case.find("error") is not None
            skipped = case.find("skipped") is not None
            group[1 if failed else 2 if skipped else 0] += 1
            group[3] += float(case.get("time", 0))
    # pytest can end badly without a failed test: an interrupted run, a broken configuration.
    if status not in (PYTEST_OK, PYTEST_TESTS_FAILED) or not groups:
        groups[group_name][1] += 1
    for name, (passed, failed, skipped, seconds) in sorted(groups.items()):
        print(name, passed, failed, skipped, f"{seconds:.1f}", sep="\t")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
