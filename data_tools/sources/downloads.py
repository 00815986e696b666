"""Original files of data sets, fetched by torchvision into the data folder."""

from pathlib import Path

from data_tools.errors import ShardError
from data_tools.files import data_home


def download(source: str, url: str, md5: str) -> Path:
    """Return the folder of an original file, fetched unless it lies there.

    Raises:
        ShardError: no network, or a damaged download.
    """
    from torchvision.datasets.utils import download_url  # brings torch: only needed here

    folder = data_home() / "downloads"
    name = url.rsplit("/", 1)[-1]
    try:
        download_url(url, str(folder), name, md5)
    except (OSError, RuntimeError) as error:
        raise ShardError(
            f"cannot download {source} ({error}): get {url} on a machine with a network "
            f"and pass its folder on: dist-prune shards make {source} FOLDER --out DIR"
        ) from error
    return folder
