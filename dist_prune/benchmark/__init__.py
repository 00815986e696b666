"""The benchmark of a sliced network: speed, memory and energy beside its dense and its reference network."""
