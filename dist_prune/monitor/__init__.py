"""Everything a run records and shows: metric names, run folder, TensorBoard, pictures, report, console.

A leaf: it imports nothing else of the package, and rank 0 alone uses it.
"""
