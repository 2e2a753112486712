"""The losses, one a file, and the table that names them.

A new loss is a file with a class like those here, and one more member of `Objective`, of `_Written` and of `Term`. One of
hidden states is not a member of `Objective`: alone it stands in a sum of one.
"""

from collections.abc import Mapping
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticKnownError

from instil.losses.cross_entropy import CrossEntropy
from instil.losses.forward_kl import ForwardKL
from instil.losses.hidden_state import HiddenState
from instil.losses.jensen_shannon import JensenShannon
from instil.losses.label_kl import LabelKL
from instil.losses.logit_mse import LogitMSE
from instil.losses.reverse_kl import ReverseKL
from instil.losses.weighted_sum import Term, WeightedSum

_Written = (
    ForwardKL
    | ReverseKL
    | JensenShannon
    | CrossEntropy
    | LogitMSE
    | HiddenState
    | LabelKL
    | WeightedSum
)
_NAMES = [loss.model_fields["name"].default for loss in get_args(_Written)]


def _read(value: Any) -> Any:
    """A list of losses is their sum, and so is a loss of hidden states alone, which has no logits to be called with."""
    if isinstance(value, Mapping):
        name = value.get("name")
        if isinstance(name, str) and name not in _NAMES:
            known = ", ".join(map(repr, _NAMES))
            raise PydanticKnownError(
                "union_tag_invalid",
                {"discriminator": "'name'", "tag": name, "expected_tags": known},
            )
        if name == "hidden_state":
            value = [value]
    elif isinstance(value, HiddenState):
        value = [value]
    return {"name": "sum", "terms": value} if isinstance(value, list | tuple) else value


Objective = Annotated[
    ForwardKL | ReverseKL | JensenShannon | CrossEntropy | LogitMSE | LabelKL | WeightedSum,
    Field(discriminator="name"),
    BeforeValidator(
        _read,
        json_schema_input_type=Annotated[_Written, Field(discriminator="name")]
        | Annotated[list[Term], Field(min_length=1)],
    ),
]

__all__ = [
    "CrossEntropy",
    "ForwardKL",
    "HiddenState",
    "JensenShannon",
    "LabelKL",
    "LogitMSE",
    "Objective",
    "ReverseKL",
    "Term",
    "WeightedSum",
]
