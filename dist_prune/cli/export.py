"""``dist-prune export``."""

from __future__ import annotations

from dist_prune.cli.arguments import command_parser, show


def export(arguments: list[str]) -> None:
    """Export the sliced network of a run, or a sliced checkpoint, as ONNX, pt2 or safetensors, and check the file."""
    parser = command_parser("export", export.__doc__)
    parser.add_argument("folder", metavar="RUN|FOLDER", help="a run folder, or a sliced checkpoint")
    parser.add_argument("--format", required=True, help="onnx, pt2 or safetensors")
    parser.add_argument("--fold_bn", action="store_true", help="fold batch norms into the convolutions before them")
    parser.add_argument("--half", action="store_true", help="fp16 weights")
    parser.add_argument("--out", metavar="PATH", help="file, or folder of safetensors (default: FOLDER/export/)")
    options = vars(parser.parse(arguments))
    from dist_prune.export.exporting import export_sliced

    show(export_sliced(**options))
