"""The losses, one per file, and the union that names them in a recipe.

To add a loss, write a file with a class like those here, and add the class to
`weighted_sum.TokenLosses`.
"""

from typing import Annotated

from pydantic import BeforeValidator, Field

from instil.losses.cross_entropy import CrossEntropy
from instil.losses.forward_kl import ForwardKL
from instil.losses.hidden_state import HiddenState
from instil.losses.jensen_shannon import JensenShannon
from instil.losses.label_kl import LabelKL
from instil.losses.logit_mse import LogitMSE
from instil.losses.reverse_kl import ReverseKL
from instil.losses.weighted_sum import Term, TokenLosses, WeightedSum


def _summed(value: object) -> object:
    """Turns a list of losses into their sum."""
    return {"name": "sum", "terms": value} if isinstance(value, list | tuple) else value


_Named = Annotated[TokenLosses | LabelKL | WeightedSum, Field(discriminator="name")]
Objective = Annotated[
    _Named,
    BeforeValidator(
        _summed, json_schema_input_type=_Named | Annotated[list[Term], Field(min_length=1)]
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
