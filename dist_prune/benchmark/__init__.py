"""The benchmark of a sliced network: how fast it is, next to the dense one and to one built by hand."""
