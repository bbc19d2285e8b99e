"""The negative control: every row of the ranked list must fail against a naive demo.

A row whose tests all pass there shows nothing about a server that passes them too.
"""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from tests.hardening.conftest import row_of
from tests.hardening.injection import NOT_MET
from tests.serving import ROOT

FOLDER = Path(__file__).parent
ROW_FILES = sorted(FOLDER.glob("test_row_*.py"))
LIMIT_S = 900
REASONS = {
    "03": "step_failed",
    "06": "timed out",
    "13": "another answer in company",
    "21": "poison was sent again",
}
"""What must be said of the rows whose faults are made: they could fail without any, as well."""


def failures(report: Path) -> dict[str, list[str]]:
    """What was said of the tests of each row that failed, in their body or in the check after it;
    what fails before its body says nothing."""
    found: dict[str, list[str]] = {}
    for case in ET.parse(report).iter("testcase"):
        broken = [*case.iter("failure"), *case.iter("error")]
        said = [each.get("message", "") for each in broken]
        if any("on setup" not in message for message in said):
            row = row_of(case.get("classname", "").replace(".", "/"))
            assert row, case.attrib
            found.setdefault(row, []).extend(said)
    return found


def test_each_row_has_its_file() -> None:
    names = [path.name for path in FOLDER.glob("test_row*")]
    assert all(re.fullmatch(r"test_row_\d\d_[a-z_]+\.py", name) for name in names), names
    assert sorted(int(row_of(name)) for name in names) == list(range(1, 26))


@pytest.mark.slow
def test_every_row_fails_against_the_naive_demo(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "--target", "naive", "-q", "-p", "no:cacheprovider"]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    done = subprocess.run(
        [*command, "--tb=line", f"--junitxml={report}", *map(str, ROW_FILES)],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert report.exists(), done.stdout + done.stderr
    failed = failures(report)
    toothless = [path.name for path in ROW_FILES if row_of(path.name) not in failed]
    assert not toothless, done.stdout[-5000:]
    for row, reason in REASONS.items():
        assert any(reason in message for message in failed[row]), (row, failed[row])
        assert not any(NOT_MET in message for message in failed[row]), (row, failed[row])
