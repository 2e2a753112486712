"""The losses, one a file, and the table that names them.

A new loss is a file with a class like those here, and one more member of `Objective`.
"""

from typing import Annotated

from pydantic import Field

from instil.objective.cross_entropy import CrossEntropy
from instil.objective.forward_kl import ForwardKL
from instil.objective.label_kl import LabelKL

Objective = Annotated[ForwardKL | CrossEntropy | LabelKL, Field(discriminator="name")]

__all__ = ["CrossEntropy", "ForwardKL", "LabelKL", "Objective"]
