"""The count of the examples that ran, in all processes together: printed at the end, and too few of them fail."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from fuzzing import Ran


class Total:
    """What the tests have reported."""

    examples = 0
    least = int(os.environ.get("ASH_FUZZ", "0"))


@pytest.fixture(autouse=True)
def _counted(record_property: Any) -> Iterator[None]:
    before = Ran.examples
    yield
    record_property("examples", Ran.examples - before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown":
        Total.examples += sum(int(value) for name, value in report.user_properties if name == "examples")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    few = f", fewer than {Total.least:,}" if Total.examples < Total.least else ""
    terminalreporter.write_line(f"{Total.examples:,} examples{few}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput") and Total.examples < Total.least and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
