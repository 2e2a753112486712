"""The base of all settings: unknown keys, infinite numbers and numbers by mistake are refused."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

MOST = 2**32 - 1
"""The largest whole number of a setting. Generators of random numbers take no larger seed."""


class Settings(BaseModel):
    """Settings that are checked when they are made. They are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, settings: Any) -> Any:
        """Refuses a truth value for a number, which pydantic reads as 1 or 0, and giant numbers."""
        for key, value in settings.items() if isinstance(settings, Mapping) else ():
            for part in value if isinstance(value, list | tuple) else (value,):
                if isinstance(part, bool) and not _may_be_true(cls, key):
                    _refuse(
                        key,
                        part,
                        "must not be true or false; YAML reads the words yes, no, on and off so, "
                        "unless they are in quotation marks",
                    )
                elif isinstance(part, int) and part > MOST:
                    _refuse(key, part, f"must be at most {MOST:,}")
        return settings


def _refuse(key: str, value: object, message: str) -> None:
    raise PydanticCustomError(
        "setting", "{message}", {"key": key, "value": value, "message": message}
    )


@cache
def _may_be_true(model: type[BaseModel], key: str) -> bool:
    """Whether a field takes true and false. An unknown key is refused elsewhere."""
    return key not in model.model_fields or _holds_bool(model.model_fields[key].annotation)


def _holds_bool(annotation: object) -> bool:
    return annotation in (bool, Any) or any(map(_holds_bool, get_args(annotation)))
