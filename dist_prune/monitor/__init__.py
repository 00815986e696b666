"""Records and pictures of a run: metric names, run folder, TensorBoard, console, pictures, and the report of one run.

Only rank 0 writes. Modules import what they need by themselves (matplotlib for pictures, jinja2 for the report,
torch for TensorBoard), so that reading a run folder stays cheap.
"""
