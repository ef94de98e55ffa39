"""What of a document Microsoft's own SDK has no place for: keys, kinds of values, words that are none of a list.

The SDK itself takes any key and keeps it, so that to read a document with it proves nothing. Here each key is looked up
in its models, which were generated from the API's definition, all the way down.
"""

from __future__ import annotations

import datetime
import enum
import importlib
import inspect
import types
import typing
from collections.abc import Iterator
from typing import Any

import azure.mgmt.compute.models
import azure.mgmt.network.models

_PACKAGES = {"compute": azure.mgmt.compute.models, "network": azure.mgmt.network.models}
# The API's definition says of this list that it has not all there are, and refers to the SKUs.
_NOT_KEPT_UP = (azure.mgmt.compute.models.VirtualMachineSizeTypes,)
_SIMPLE: dict[Any, tuple[type, ...]] = {
    str: (str,),
    int: (int,),
    float: (int, float),
    bool: (bool,),
    datetime.datetime: (str,),
}


def misfits(model: Any, document: Any, *, asked: bool = False, at: str = "") -> list[str]:
    """Places of `document`, in words of the API, and what is wrong there; none when all of it is known.

    `asked`: what may only be answered is wrong as well.
    """
    if typing.get_origin(model) in (typing.Union, types.UnionType):
        return _of_any(typing.get_args(model), document, asked, at)
    if typing.get_origin(model) is list:
        if not isinstance(document, list):
            return [f"{at} is no list"]
        (kind,) = typing.get_args(model)
        return [
            one
            for number, item in enumerate(document)
            for one in misfits(kind, item, asked=asked, at=f"{at}[{number}]")
        ]
    if typing.get_origin(model) is dict:
        if not isinstance(document, dict):
            return [f"{at} is no object"]
        _, kind = typing.get_args(model)
        return [one for key, item in document.items() for one in misfits(kind, item, asked=asked, at=f"{at}.{key}")]
    if typing.get_origin(model) is typing.Literal or _is_list(model):
        known = [one.value for one in list(model)] if _is_list(model) else list(typing.get_args(model))
        return [] if document in known else [f"{at} is {document!r}, none of {known}"]
    if model in _SIMPLE:
        fits = isinstance(document, _SIMPLE[model]) and (model is bool or not isinstance(document, bool))
        return [] if fits else [f"{at} is {document!r}, no {model.__name__}"]
    if hasattr(model, "_attr_to_rest_field") or hasattr(model, "_is_model"):
        return _of_model(model, document, asked, at)
    raise AssertionError(f"{at} is of the kind {model}, which is not looked into here")


def _of_any(kinds: tuple[Any, ...], document: Any, asked: bool, at: str) -> list[str]:
    if document is None:
        return [] if type(None) in kinds and not asked else [f"{at} is null"]
    kinds = tuple(kind for kind in kinds if kind is not type(None) and kind not in _NOT_KEPT_UP)
    # A word that new versions may add to is a string or one of the list: here it has to be one of the list.
    listed = [kind for kind in kinds if _is_list(kind)]
    found = [misfits(kind, document, asked=asked, at=at) for kind in listed or kinds]
    return min(found, key=len)


def _is_list(kind: Any) -> bool:
    """Of words."""
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


def _of_model(model: type, document: Any, asked: bool, at: str) -> list[str]:
    if not isinstance(document, dict):
        return [f"{at} is no object"]
    fields = {name: (kind, visible) for name, kind, visible in _fields(model)}
    found = []
    for key, value in document.items():
        place = f"{at}.{key}".lstrip(".")
        if key not in fields:
            found.append(f"{place} is no property of {model.__name__}")
            continue
        kind, visible = fields[key]
        if asked and visible == ["read"]:
            found.append(f"{place} is for answers only")
        found += misfits(kind, value, asked=asked, at=place)
    return found


def _fields(model: type) -> Iterator[tuple[str, Any, list[str]]]:
    """Name in the API, kind, and what it is for; with those of the models that this one is made of."""
    for base in reversed(model.__mro__):
        package = next((models for name, models in _PACKAGES.items() if f".mgmt.{name}." in base.__module__), None)
        if package is None:
            continue
        names = {**vars(importlib.import_module(base.__module__)), "_models": package}
        own = type("_", (), {"__annotations__": inspect.get_annotations(base)})
        for attribute, kind in typing.get_type_hints(own, names).items():
            field: Any = vars(base).get(attribute)
            if hasattr(field, "_rest_name_input"):
                yield field._rest_name_input or attribute, kind, field._visibility or []
