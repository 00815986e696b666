"""Numbers and results as text, for the console, the report of a run and comparisons."""

from collections.abc import Mapping
from math import isnan, nan
from typing import Any

NOT_MEASURED = "not measured"


def percent(ratio: float | None) -> str:
    """Format 0.983 as "98.3 %", with more digits where one would read as none or all."""
    return NOT_MEASURED if ratio is None or isnan(ratio) else f"{spread(ratio, nan, 100, 1)} %"


def count(number: float | None, unit: str = "") -> str:
    """Format 41220000 as "41.22 M", with a unit as "41.22 M MACs"; below a thousand the number itself."""
    if number is None:
        return NOT_MEASURED
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.2f} {letter} {unit}".rstrip()
    return f"{number:g} {unit}".rstrip()


def duration(seconds: float | None) -> str:
    """Format seconds as "4.2 s", "1 min 23 s" or "2 h 05 min"."""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 59.95:  # 59.95 s and more would read as "60.0 s"
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def energy(joules: float | None) -> str:
    """Format joules as "12.30 kJ (3.42 Wh)"."""
    if joules is None:
        return NOT_MEASURED
    in_joules = f"{joules / 1000:.2f} kJ" if joules >= 1000 else f"{joules:.1f} J"
    return f"{in_joules} ({joules / 3600:.2f} Wh)"


def grams(mass: float | None) -> str:
    """Format grams as "12.3 g" or "1.23 kg"."""
    if mass is None:
        return NOT_MEASURED
    return f"{mass / 1000:.3g} kg" if mass >= 1000 else f"{mass:.3g} g"


def plain(number: float | None, scale: float = 1) -> str:
    """Format a number, times `scale`, with three significant digits."""
    return NOT_MEASURED if number is None else f"{scale * number:.3g}"


def spread(mean: float, std: float, scale: float = 1, digits: int = 2) -> str:
    """Format mean and standard deviation, times `scale`, with equally many digits: "82.06 ± 0.31".

    A NaN mean reads "not measured"; a NaN std, that of a single value, is omitted.
    """
    if isnan(mean):
        return NOT_MEASURED
    misleading = {0.0, 100.0} if scale == 100 else {0.0}  # a rounded number must not read as none or as all
    exact = scale * mean in misleading
    while not exact and digits < 6 and float(f"{scale * mean:.{digits}f}") in misleading:
        digits += 1
    text = f"{scale * mean:.{digits}f}"
    return text if isnan(std) else f"{text} ± {scale * std:.{digits}f}"


def result_rows(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the rows (name, value) of the final table of a summary record; what is missing was not measured.

    The record may also hold `accuracy` and `accuracy_consensus`. Accuracies and ratios are fractions.
    """
    get = result.get
    gated = get("accuracy_consensus") is not None
    target = get("target_macs")
    budget = "" if target is None else f" (budget {percent(target)}: {get('budget')})"
    names = ", ".join(get("macs_not_counted") or ())
    not_counted = [("MACs are incomplete", f"not counted: {names}")] if names else []
    co2 = []
    if "co2_grams" in result:
        co2 = [("CO2", f"{grams(get('co2_grams'))} (at {get('grid_intensity'):g} g/kWh)")]
    return [
        ("accuracy, gates dynamic" if gated else "accuracy", percent(get("accuracy"))),
        ("accuracy, gates fixed to the consensus", percent(get("accuracy_consensus"))),
        ("accuracy, sliced network", percent(get("accuracy_sliced"))),
        ("MACs, dense", count(get("macs_dense"), "MACs")),
        ("MACs, sliced", count(get("macs"), "MACs")),
        ("MACs, sliced / dense", percent(get("macs_ratio")) + budget),
        *not_counted,
        ("parameters, dense", count(get("parameters_dense"))),
        ("parameters, sliced", count(get("parameters"))),
        ("agreement of samples with the consensus", percent(get("agreement"))),
        ("units flipped by rounding", count(get("units_flipped_by_rounding"))),
        ("largest difference, masked - sliced output", plain(get("max_abs_difference"))),
        ("time", duration(get("seconds_total"))),
        ("energy", energy(get("energy_joules")) + _sensors(result)),
        *co2,
        ("processes", count(get("world_size"))),
    ]


def _sensors(result: Mapping[str, Any]) -> str:
    """Return the sensors that measured the energy, or why it was not measured."""
    get = result.get
    if get("energy_joules") is None:
        reasons = get("energy_missing") or ()
        return f" ({'; '.join(reasons)})" if reasons else ""
    kinds = {"gpu": "GPU", "cpu": "CPU package", "dram": "memory"}
    counts = (get("energy_sensors") or {}).items()
    found = [f"{n} {kinds[kind]}{'s' * (n > 1 and kind != 'dram')}" for kind, n in counts]
    if found and get("world_size") not in (None, get("energy_ranks")):
        found.append(f"sensors for {get('energy_ranks')} of {get('world_size')} processes only")
    return f" of {', '.join(found)}" if found else ""
