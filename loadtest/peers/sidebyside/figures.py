"""What a row tells of a proxy."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    name: str
    title: str
    unit: str
    digits: int = 1
    # Whether its lowest and highest are told beside the median.
    spread: bool = False
