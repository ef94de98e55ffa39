"""Label selectors, as the API server reads them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

_Test = Callable[[str | None, frozenset[str]], bool]
# `value` is None where the label is absent. NotIn holds for an absent label, as in `kubectl get -l 'a notin (b)'`.
_OPERATORS: Mapping[str, _Test] = {
    "In": lambda value, values: value in values,
    "NotIn": lambda value, values: value not in values,
    "Exists": lambda value, _: value is not None,
    "DoesNotExist": lambda value, _: value is None,
}
_WITH_VALUES = frozenset({"In", "NotIn"})


class SelectorError(ValueError):
    """A selector that the API server would refuse; str() says what and what is allowed."""


def matcher(selector: Mapping[str, Any]) -> Callable[[Mapping[str, str]], bool]:
    """What tells whether labels match a LabelSelector. Raises SelectorError.

    An empty selector matches everything (`metav1.LabelSelector`).
    """
    wanted = dict(selector.get("matchLabels") or {})
    tests: list[tuple[str, _Test, frozenset[str]]] = []
    for expression in selector.get("matchExpressions") or []:
        key, operator = str(expression.get("key", "")), str(expression.get("operator", ""))
        values = frozenset(str(value) for value in expression.get("values") or [])
        if operator not in _OPERATORS:
            raise SelectorError(f"operator {operator!r} of {key!r} must be one of {', '.join(_OPERATORS)}")
        if bool(values) != (operator in _WITH_VALUES):
            how = "at least one value" if operator in _WITH_VALUES else "no values"
            raise SelectorError(f"operator {operator} of {key!r} takes {how}")
        tests.append((key, _OPERATORS[operator], values))

    def matches(labels: Mapping[str, str]) -> bool:
        return wanted.items() <= labels.items() and all(test(labels.get(key), values) for key, test, values in tests)

    return matches
