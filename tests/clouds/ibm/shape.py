"""What of a document IBM's own SDK has no place for, or misses: keys, kinds of values, words that are none of a list.

The SDK's `from_dict` passes over what it does not know, and keeps what may be one of several kinds as it is. Here each
key is looked up in its models, which were generated from the API's definition, all the way down.
"""

from __future__ import annotations

import datetime
import enum
import inspect
import types
import typing
from typing import Any

from ibm_vpc import vpc_v1  # type: ignore[import-untyped]

_SIMPLE: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    bool: (bool,),
    dict: (dict,),
    datetime.datetime: (str,),
}


def misfits(model: Any, document: Any, at: str = "") -> list[str]:
    """Places of `document` and what is wrong there; none when all of it is known and nothing is missing."""
    if typing.get_origin(model) in (typing.Union, types.UnionType):
        kinds: list[Any] = [kind for kind in typing.get_args(model) if kind is not type(None)]
        return min((misfits(kind, document, at) for kind in kinds), key=len)
    if typing.get_origin(model) is list:
        if not isinstance(document, list):
            return [f"{at} is no list"]
        item_kind: Any = typing.get_args(model)[0]
        return [one for number, item in enumerate(document) for one in misfits(item_kind, item, f"{at}[{number}]")]
    if model in _SIMPLE:
        fits = isinstance(document, _SIMPLE[model]) and (model is bool or not isinstance(document, bool))
        return [] if fits else [f"{at} is {document!r}, no {model.__name__}"]
    if isinstance(model, type) and model.__module__ == vpc_v1.__name__:
        # What may be one of several kinds has a model without properties, and these are made of it.
        return min((_of_model(kind, document, at) for kind in _all_of(model)), key=len)
    raise AssertionError(f"{at} is of the kind {model}, which is not looked into here")


def _all_of(model: Any) -> list[Any]:
    """Those with properties: its own, or of all that are made of it."""
    below: list[Any] = [one for kind in model.__subclasses__() for one in _all_of(kind)]
    return below or [model]


def _of_model(model: type, document: Any, at: str) -> list[str]:
    if not isinstance(document, dict):
        return [f"{at} is no object"]
    signature = inspect.signature(model.__init__)  # type: ignore[misc]
    # A word that Python has for itself has a line after it.
    kinds = {
        name.removesuffix("_"): kind
        for name, kind in typing.get_type_hints(model.__init__, vars(vpc_v1)).items()  # type: ignore[misc]
        if name != "return"
    }
    needed = {
        name.removesuffix("_")
        for name, one in signature.parameters.items()
        if one.default is inspect.Parameter.empty and one.kind is not inspect.Parameter.VAR_KEYWORD and name != "self"
    }
    found = [f"{at}.{key} is missing of {model.__name__}".lstrip(".") for key in sorted(needed - document.keys())]
    for key, value in document.items():
        place = f"{at}.{key}".lstrip(".")
        if key not in kinds:
            found.append(f"{place} is no property of {model.__name__}")
            continue
        found += misfits(kinds[key], value, place)
        words = getattr(model, key.title().replace("_", "") + "Enum", None)
        if isinstance(words, type) and issubclass(words, enum.Enum):
            known = [one.value for one in words]
            values = value if isinstance(value, list) else [value]
            found += [f"{place} is {one!r}, none of {known}" for one in values if one not in known]
    return found
