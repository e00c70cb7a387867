"""A JSON value held against a protobuf message: every wrong field with its exact path, all at once.

proto-plus alone would take a string for a list of letters, 1.5 for 1 and the last of two exclusive
fields, and names no path in what it refuses. The walk follows the message's own descriptor, so it
knows every field of the installed SDK.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from prefect_vertex_launch.core.findings import Findings
from prefect_vertex_launch.core.json_value import at, is_list, is_object, kind_of, shown
from prefect_vertex_launch.core.spelling import right_spelling
from prefect_vertex_launch.jobspec.config.macros import MacroText, is_macro

_INTEGER_BITS: Final = {FieldDescriptor.CPPTYPE_INT32: 32, FieldDescriptor.CPPTYPE_INT64: 64}
# Larger than any number of replicas, bytes or seconds; int() of longer text may raise.
_MAX_DIGITS: Final = 20
_TEXT_TYPES: Final = (str, MacroText)
# Vertex AI has a limit for the variables of a task, and none for mounts, ranges or models.
MAX_VARIABLES: Final = 100
MAX_ITEMS: Final = 1_000


def descriptor_of(message: Any) -> Descriptor:
    """Return the descriptor of a proto-plus message class."""
    return message.pb(message()).DESCRIPTOR


def enum_of(message: Any, field: str) -> EnumDescriptor:
    """Return the descriptor of the enum that a field of a proto-plus message class holds."""
    enum_type = descriptor_of(message).fields_by_name[field].enum_type
    assert enum_type is not None
    return enum_type


@dataclass(frozen=True, slots=True)
class FieldWalk:
    """One walk: notes problems in `findings` and returns what proto-plus may be given.

    While `macros_pending`, a number, enum or true/false may still be exactly one macro.
    """

    findings: Findings
    macros_pending: bool

    def message(self, descriptor: Descriptor, value: Any, path: str) -> dict[str, Any]:
        """Return `value` with nulls left out and macro text made into numbers where numbers belong."""
        if not is_object(value):
            fix = f'Write {{"{descriptor.fields[0].name}": …}}.'
            self.findings.expected(path, f"an object ({descriptor.name})", value, fix)
            return {}
        result: dict[str, Any] = {}
        for key, item in value.items():
            field = descriptor.fields_by_name.get(key)
            if field is None:
                self.findings.unknown_key(path, key, descriptor.fields_by_name.keys(), descriptor.name)
            elif item is not None and (taken := self._field(field, item, at(path, key))) is not None:
                result[key] = taken
        self._check_oneofs(descriptor, value, path)
        return result

    def _check_oneofs(self, descriptor: Descriptor, value: dict[str, Any], path: str) -> None:
        for oneof in descriptor.oneofs:
            chosen = [field.name for field in oneof.fields if value.get(field.name) is not None]
            if len(chosen) > 1:
                self.findings.refuse(
                    path,
                    f"both {' and '.join(chosen)} are set",
                    f"{descriptor.name} takes one of them",
                    "Keep one and remove the other.",
                )

    def _field(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        if not field.is_repeated:
            return self._single(field, value, path)
        if not is_list(value):
            fix = "Write one list item per word." if isinstance(value, str) else "Put it into a list: […]."
            if field.name == "env" and is_object(value):
                fix = 'Write [{"name": "A", "value": "1"}] instead of {"A": "1"}.'
            self.findings.expected(path, "a list", value, fix)
            return []
        if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self.texts(value, path)
        items = self.not_too_many(value, path, MAX_VARIABLES if field.name == "env" else MAX_ITEMS)
        return [self._single(field, item, at(path, index)) for index, item in enumerate(items)]

    def _single(self, field: FieldDescriptor, value: Any, path: str) -> Any:
        if field.message_type is not None:
            return self.message(field.message_type, value, path)
        if field.enum_type is not None:
            return self.enum(field.enum_type, value, path)
        if field.cpp_type in _INTEGER_BITS:
            return self.integer(value, path, bits=_INTEGER_BITS[field.cpp_type])
        if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return self.boolean(value, path)
        return self.text(value, path)

    def enum(self, descriptor: EnumDescriptor, value: Any, path: str) -> Any:
        """Return the name or number of a member as it was given, or None for what can be neither."""
        if self.macros_pending and is_macro(value):
            return value
        names = [member.name for member in descriptor.values if member.number]
        known = f"Known are: {', '.join(names)}."
        if isinstance(value, str):
            if value not in descriptor.values_by_name:
                meant = right_spelling(value, names)
                fix = f"Did you mean {meant}?" if meant else known
                self.findings.refuse(path, f"{shown(value)} is no {descriptor.name}", fix=fix)
            return str(value)
        if isinstance(value, bool) or not isinstance(value, int):
            self.findings.expected(path, f"the name of a {descriptor.name}", value, known)
            return None
        # The descriptor's own mapping cuts a number to 32 bits, and then finds 2**40 to be 0.
        if value not in {member.number for member in descriptor.values}:
            self.findings.refuse(
                path,
                f"{shown(value)} is not the number of a {descriptor.name}",
                fix=f"Write its name. {known}",
            )
        return value

    def integer(
        self, value: Any, path: str, *, bits: int, what: str = "a whole number", example: int = 1
    ) -> Any:
        """Return a whole number that fits into `bits` bits, or None; `example` is one for the fix."""
        if self.macros_pending and is_macro(value):
            return value
        number = value
        if isinstance(value, MacroText) and (digits := value.strip()).removeprefix("-").isdecimal():
            number = int(digits) if len(digits) <= _MAX_DIGITS else value
        if isinstance(number, bool) or not isinstance(number, int):
            if isinstance(value, MacroText):
                what_is_wrong = f"expected {what}, but the macro brings none"
                fix = f"Give the macro such a value, {example} say, or write the number here."
            else:
                got = shown(value) if isinstance(value, float) else kind_of(value)
                what_is_wrong = f"expected {what}, got {got}"
                fix = f"Write a number without quotes or fraction, such as {example}."
            self.findings.refuse(path, what_is_wrong, fix=fix)
            return None
        if not -(2 ** (bits - 1)) <= number < 2 ** (bits - 1):
            self.findings.refuse(
                path,
                f"{shown(number)} does not fit into {bits} bits",
                fix=f"Write a number such as {example}.",
            )
            return None
        return number

    def boolean(self, value: Any, path: str) -> Any:
        """Return true or false, or None for what is neither."""
        if self.macros_pending and is_macro(value):
            return value
        if isinstance(value, MacroText) and value.lower() in {"true", "false"}:
            return value.lower() == "true"
        if not isinstance(value, bool):
            self.findings.expected(path, "true or false", value, "Write true or false, without quotes.")
            return None
        return value

    def not_too_many(self, items: list[Any], path: str, most: int = MAX_ITEMS) -> list[Any]:
        """Return a list, or its beginning if it is longer than any that Vertex AI or a person has."""
        if len(items) > most:
            self.findings.refuse(
                path, f"a list of {len(items)}", f"at most {most:,} may be in it", "Remove some."
            )
        return items[:most]

    def texts(self, items: list[Any], path: str) -> list[Any]:
        """Return a list of strings, each as `text` returns it."""
        return [
            # A job may have a hundred thousand, and nearly all are right as they are.
            str(item) if type(item) in _TEXT_TYPES and "\0" not in item else self.text(item, at(path, index))
            for index, item in enumerate(items)
        ]

    def text(self, value: Any, path: str) -> Any:
        """Return a string without NUL, which no argument, variable or name can hold."""
        if not isinstance(value, str):
            fix = "Put it into quotes." if isinstance(value, bool | int | float) else ""
            self.findings.expected(path, "a string", value, fix)
            return ""
        if "\0" in value:
            self.findings.refuse(path, "holds a NUL character", "no argument or variable can", "Remove it.")
            return ""
        return str(value)
