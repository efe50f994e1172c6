"""What a row tells of a proxy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    unit: str
    digits: int = 1
