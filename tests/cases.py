"""Many small cases in one test, for tests whose fixtures cost far more than a case."""

from __future__ import annotations

import inspect
from functools import wraps
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence


def each(
    names: str | Sequence[str], cases: Iterable[Any]
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Call the test with each case in turn, on the same fixtures. Any: tests and values of all
    types.

    The arguments are those of `pytest.mark.parametrize`. Only for cases that leave nothing behind,
    such as requests that are rejected. Every case is tried; the failures are raised together, each
    with a note that names its case.
    """
    split = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    given = [dict(zip(split, case if len(split) > 1 else (case,), strict=True)) for case in cases]

    def decorate(test: Callable[..., Any]) -> Callable[..., Any]:
        failures: list[Exception] = []

        def attempts() -> Iterator[tuple[dict[str, Any], _Attempt]]:
            failures.clear()
            for case in given:
                yield case, _Attempt(case, failures)
            if failures:
                raise ExceptionGroup(f"{len(failures)} of {len(given)} cases failed", failures)

        if inspect.iscoroutinefunction(test):

            @wraps(test)
            async def run(**fixtures: Any) -> None:
                for case, attempt in attempts():
                    with attempt:
                        await test(**fixtures, **case)
        else:

            @wraps(test)
            def run(**fixtures: Any) -> None:
                for case, attempt in attempts():
                    with attempt:
                        test(**fixtures, **case)

        # pytest looks here for the fixtures.
        whole = inspect.signature(test)
        rest = [value for name, value in whole.parameters.items() if name not in split]
        run.__signature__ = whole.replace(parameters=rest)  # type: ignore[attr-defined]
        return run

    return decorate


class _Attempt:
    """Keeps the failure of a case, with a note."""

    def __init__(self, case: dict[str, Any], failures: list[Exception]) -> None:
        self._case = case
        self._failures = failures

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, Exception):
            return False
        error.add_note(f"case: {self._case}")
        self._failures.append(error)
        return True
