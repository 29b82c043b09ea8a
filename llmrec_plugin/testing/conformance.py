"""The contract of a plugin as checks over its own features and models.

check_plugin("acme").raise_failures()

@parametrize_with_checks("acme")
def test_conformance(check):
    check()
"""

from __future__ import annotations

import inspect
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llmrec_plugin.errors import LLMRecError, UnknownNameError
from llmrec_plugin.specs import Feature, SimilarityFeature
from llmrec_plugin.testing.checks import declarations as of_declarations
from llmrec_plugin.testing.checks import feast as of_feast
from llmrec_plugin.testing.checks import processes as of_processes
from llmrec_plugin.testing.checks import values as of_values
from llmrec_plugin.testing.declarations import Declared, Plugin, find_declarations
from llmrec_plugin.testing.outcomes import CheckFailed, CheckSkipped
from llmrec_plugin.testing.subjects import Rows, Subject

if TYPE_CHECKING:
    import pytest

Status: TypeAlias = Literal["passed", "failed", "skipped"]

PLUGIN_CHECKS: tuple[Callable[[Declared], None], ...] = (
    of_declarations.hooks_give_declarations,
    of_declarations.importing_is_light,
)
MODEL_CHECKS: tuple[Callable[[Subject], None], ...] = (
    of_declarations.declaration_is_valid,
    of_declarations.declaration_is_stable,
    of_declarations.artifact_matches_its_manifest,
    of_declarations.golden_values_come_out,
)
VALUE_CHECKS: tuple[Callable[[Subject], None], ...] = (
    of_values.values_have_the_declared_form,
    of_values.order_is_kept,
    of_values.row_alone_equals_row_in_batch,
    of_values.duplicates_are_equal,
    of_values.hostile_values_follow_the_policy,
    of_values.inputs_are_unchanged,
    of_values.threads_agree,
)
COLUMN_CHECKS: tuple[Callable[[Subject], None], ...] = (
    of_processes.fork_agrees,
    of_processes.spawn_agrees,
    of_values.memory_is_bounded,
)
"""Checks of features that are columns of their own; a similarity has those of its sides."""
FEAST_CHECKS: tuple[Callable[[Subject], None], ...] = (of_feast.feast_gives_the_same,)


@dataclass(frozen=True)
class Check:
    """One promise of one feature or model.

    Attributes:
        id: ``<feature or model>-<check>``.
        about: What it checks, in one sentence.
    """

    id: str
    about: str
    _run: Callable[[], None] = field(repr=False)

    def run(self) -> None:
        """Makes the check.

        Raises:
            CheckFailed: The promise is not kept; the message says what was expected, what came and what to do.
            CheckSkipped: It cannot be made here; the message says why.
        """
        try:
            self._run()
        except CheckSkipped:
            raise
        except CheckFailed as exc:
            raise CheckFailed(f"{self.id}: {exc}") from exc
        except LLMRecError as exc:
            raise CheckFailed(f"{self.id}: {type(exc).__name__}: {exc}") from exc

    def __call__(self) -> None:
        """Makes the check in a test; what cannot be checked here is skipped."""
        __tracebackhide__ = True
        import pytest  # whoever calls this has it; other users of this module may not

        try:
            self.run()
        except CheckSkipped as exc:
            pytest.skip(str(exc))


@dataclass(frozen=True)
class Result:
    """How a check ended.

    Attributes:
        id: Of the check.
        status: ``passed``, ``failed`` or ``skipped``.
        message: What is wrong, or why it was skipped.
        seconds: How long it took.
    """

    id: str
    status: Status
    message: str
    seconds: float


@dataclass(frozen=True)
class Report:
    """The results of all checks of a plugin."""

    plugin: str
    results: tuple[Result, ...]

    @property
    def failures(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.status == "failed")

    def raise_failures(self) -> None:
        """Raises one error for all that failed.

        Raises:
            CheckFailed: A check failed.
        """
        if self.failures:
            lines = "\n".join(f"  {result.message}" for result in self.failures)
            raise CheckFailed(f"{len(self.failures)} of {len(self.results)} checks of {self.plugin!r} failed:\n{lines}")


def checks_of(plugin: Plugin, *, rows: Rows | None = None) -> list[Check]:
    """Every check that applies to what a plugin declares; none is made yet.

    Args:
        plugin: Name of an installed plugin, of its package or module; a plugin object; or features and models.
        rows: Feature -> rows of its columns, instead of made ones.

    Raises:
        UnknownNameError: There is no such plugin, or `rows` names a feature that it does not declare.
        DeclarationError: What was given is no plugin.
    """
    return list(_checks(find_declarations(plugin), rows or {}))


def _checks(declared: Declared, rows: Rows) -> Iterator[Check]:
    for name in rows:
        if name not in declared.features:
            raise UnknownNameError("feature", name, declared.features)
    if declared.place:
        yield from (_check(f"plugin_{declared.name}", function, declared) for function in PLUGIN_CHECKS)
    elif declared.name != "given":
        yield _check(f"plugin_{declared.name}", of_declarations.hooks_give_declarations, declared)
    for model in declared.models.values():
        yield from (_check(model.name, function, Subject(model, declared)) for function in MODEL_CHECKS)
    for feature in declared.features.values():
        subject = Subject(feature, declared, rows)
        yield from (_check(feature.name, function, subject) for function in checks_for(feature))


def checks_for(feature: Feature) -> tuple[Callable[[Subject], None], ...]:
    """The checks that apply to a feature of this kind."""
    if isinstance(feature, SimilarityFeature):
        return (*MODEL_CHECKS[:2], *VALUE_CHECKS, *FEAST_CHECKS)
    return (*MODEL_CHECKS, *VALUE_CHECKS, *COLUMN_CHECKS, *FEAST_CHECKS)


def _check(name: str, function: Callable[[Any], None], argument: Any) -> Check:
    return Check(f"{name}-{function.__name__}", inspect.getdoc(function) or "", lambda: function(argument))


def check_plugin(
    plugin: Plugin,
    *,
    rows: Rows | None = None,
    select: Iterable[str] = (),
    done: Callable[[Result], None] | None = None,
) -> Report:
    """Makes every check that applies and reports how each ended; failures are raised by `Report.raise_failures`.

    Args:
        plugin: See `checks_of`.
        rows: See `checks_of`.
        select: Parts of ids; only checks with one of them in their id are made. Empty: all.
        done: Called with each result as soon as it is there.

    Raises:
        UnknownNameError: There is no such plugin.
        DeclarationError: What was given is no plugin.
    """
    declared, parts = find_declarations(plugin), tuple(select)
    results = []
    for check in _checks(declared, rows or {}):
        if not parts or any(part in check.id for part in parts):
            results.append(_result(check))
            if done is not None:
                done(results[-1])
    return Report(declared.name, tuple(results))


def _result(check: Check) -> Result:
    started = time.monotonic()
    status: Status = "failed"
    message = ""
    try:
        check.run()
        status = "passed"
    except CheckSkipped as exc:
        status, message = "skipped", str(exc)
    except CheckFailed as exc:
        message = str(exc)
    except Exception:  # of the plugin: the other checks must still be made
        message = f"{check.id}: {traceback.format_exc()}"
    return Result(check.id, status, message, time.monotonic() - started)


def parametrize_with_checks(
    plugin: Plugin, *, rows: Rows | None = None, expected_failures: Mapping[str, str] | None = None
) -> pytest.MarkDecorator:
    """Gives a test every check of a plugin, one case each, with ids such as ``item_embedding-order_is_kept``.

    The test takes an argument ``check`` and calls it.

    Args:
        plugin: See `checks_of`.
        rows: See `checks_of`.
        expected_failures: Id of a check -> why it is known to fail; it is an error if it passes.

    Raises:
        UnknownNameError: There is no such plugin, feature or check.
        DeclarationError: What was given is no plugin.
    """
    import pytest  # only authors' tests need it

    checks = checks_of(plugin, rows=rows)
    expected = expected_failures or {}
    for name in expected:
        if name not in {check.id for check in checks}:
            raise UnknownNameError("check", name, [check.id for check in checks])
    return pytest.mark.parametrize(
        "check",
        [
            pytest.param(
                check,
                id=check.id,
                marks=[pytest.mark.xfail(reason=expected[check.id], strict=True, raises=CheckFailed)]
                if check.id in expected
                else [],
            )
            for check in checks
        ],
    )
