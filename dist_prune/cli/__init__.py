"""The command line. Importing it loads no torch until a command needs it."""


def main() -> None:
    """Run ``dist-prune``; the entry point of installations older than ``dist_prune.cli.main``."""
    from dist_prune.cli.main import main as command

    command()
