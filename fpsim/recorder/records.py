"""What the records of a bundle hold, checked field by field before anything is made of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .bundle import Bundle, BundleError

Check = Callable[[Any, Bundle], bool]


def check_records(bundle: Bundle) -> None:
    """Raises BundleError, naming the first record that is not as the recorder writes them."""
    for number, record in enumerate(bundle.records):
        kind = record.get("kind")
        if not isinstance(kind, str) or kind not in _RECORDS:
            raise BundleError(f"record {number} of the bundle is of the kind {kind!r:.40}, which this fpsim does not know")
        for field, is_right in _fields(kind, record):
            if field not in record:
                raise BundleError(f"record {number} of the bundle ({kind}) has no {field!r}")
            if not is_right(record[field], bundle):
                raise BundleError(f"record {number} of the bundle ({kind}): its {field!r} is {record[field]!r:.60}")


def _fields(kind: str, record: dict[str, Any]) -> Iterator[tuple[str, Check]]:
    """(field, what it must be) for each field that the record must have or has."""
    always, results, optional = _RECORDS[kind]
    yield from (always | ({"skipped": _text} if "skipped" in record else results)).items()
    yield from ((field, check) for field, check in optional.items() if field in record)


def _of(kind: type) -> Check:
    return lambda value, bundle: isinstance(value, kind)


def _plain(value: Any, bundle: Bundle) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _named(check: Check) -> Check:
    return lambda value, bundle: isinstance(value, dict) and all(check(item, bundle) for item in value.values())


def _number(value: Any, bundle: Bundle) -> bool:
    """The number of a tensor."""
    return type(value) is int and 0 <= value < len(bundle.tensors)


def _table(value: Any, bundle: Bundle) -> bool:
    """The number of a square table."""
    if not _number(value, bundle):
        return False
    dtype, shape, _, _ = bundle.tensors[value]
    return dtype == "uint16" and len(shape) == 2 and shape[0] == shape[1]


def _codes(value: Any, bundle: Bundle) -> bool:
    """The number of a matrix of small numbers."""
    return _number(value, bundle) and bundle.tensors[value][0] == "uint8" and len(bundle.tensors[value][1]) == 2


def _list_of(check: Check) -> Check:
    return lambda value, bundle: isinstance(value, list) and all(check(item, bundle) for item in value)


def _product(value: Any, bundle: Bundle) -> bool:
    """(m, k, n)."""
    return isinstance(value, list) and len(value) == 3 and all(type(size) is int and 0 < size < 1 << 28 for size in value)


def _argument(value: Any, bundle: Bundle) -> bool:
    if isinstance(value, list):
        return all(_argument(item, bundle) for item in value)
    if not isinstance(value, dict):
        return not isinstance(value, float) and _plain(value, bundle)
    if len(value) != 1:
        return False
    ((kind, held),) = value.items()
    match kind:
        case "tensor":
            return _number(held, bundle)
        case "float":
            return isinstance(held, str) and _is_float(held)
        case "dtype" | "layout":
            return isinstance(held, str)
        case "device":
            return held is None
    return False


def _is_float(text: str) -> bool:
    try:
        float.fromhex(text)
    except (ValueError, OverflowError):
        return False
    return True


def _tensor(value: Any, bundle: Bundle) -> bool:
    return isinstance(value, dict) and value.keys() == {"tensor"} and _number(value["tensor"], bundle)


_text, _truth, _flags, _arguments = _of(str), _of(bool), _named(_plain), _named(_argument)

#: By kind: the fields of every record, those of one that holds results, and those that may be there.
_RECORDS: dict[str, tuple[dict[str, Check], dict[str, Check], dict[str, Check]]] = {
    "call": (
        {"section": _text, "op": _text},
        {"args": _list_of(_argument), "kwargs": _arguments, "result": _argument, "written": _arguments, "flags": _flags},
        {"place": _text, "label": _text},
    ),
    "masks": (
        {"section": _text, "op": _text, "dtype": _text, "shape": _product, "flags": _flags},
        {"alike": _truth, "survivors": _table},
        {"others": _list_of(_table), "orders": _codes},
    ),
    "instruction": (
        {"section": _text, "op": _text},
        {"operand": _text, "a": _tensor, "b": _tensor, "c": _tensor, "d": _tensor},
        {"label": _text, "flags": _flags},
    ),
}
