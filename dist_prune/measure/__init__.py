"""What networks and runs cost: MACs and parameters, and the energy of a stretch of time."""

from dist_prune.measure.energy import Energy, EnergyMeter, co2_grams
from dist_prune.measure.macs import Costs, Part, count_macs, count_parameters, unit_costs
from dist_prune.measure.sensors import Found, find_sensors

__all__ = [
    "Costs",
    "Energy",
    "EnergyMeter",
    "Found",
    "Part",
    "co2_grams",
    "count_macs",
    "count_parameters",
    "find_sensors",
    "unit_costs",
]
