"""The images to predict: what the settings name."""

from dataclasses import replace

from jobs.console import say
from jobs.data.folders import find_dataset, splits_of
from jobs.data.images import Images, open_files, open_shards
from jobs.predict.settings import ALL, Settings

LAYOUTS_OF_FILES = {
    **{".npz": "npz", ".h5": "hdf5", ".hdf5": "hdf5", ".parquet": "parquet"},
    **dict.fromkeys((".csv", ".ecsv"), "catalogue"),
}
IMAGES = (".npy", ".fits", ".fit", ".fts", ".gz", ".png", ".jpg", ".jpeg", ".tif", ".tiff")


def with_layout(settings: Settings) -> Settings:
    """Return settings with the layout of what `dataset` names, if that is no data set but a folder of images, a file of
    images, or a catalogue."""
    path = settings.origin
    if settings.layout != "dataset" or not path.exists() or splits_of(path) or splits_of(settings.data_root / path):
        return settings
    if path.is_file():
        layout = LAYOUTS_OF_FILES.get(path.suffix.lower())
    else:
        layout = "files" if any(each.suffix.lower() in IMAGES for each in path.iterdir()) else None
    if layout is None or settings.split != ALL:
        return settings
    say(f"{path} is not a data set of deeplense; it is read with --layout {layout}")
    if layout == "catalogue":
        return replace(settings, layout=layout, catalog=path, dataset="", source=None)
    return replace(settings, layout=layout)


def open_images(settings: Settings) -> Images:
    """Open the images to predict. Raises ValueError if there is no such data set, split, folder or file."""
    if settings.layout != "dataset":
        return open_files(settings)
    dataset = find_dataset(settings.dataset or str(settings.origin), settings.data_root)
    return open_shards(dataset, splits_of(dataset) if settings.split == ALL else [settings.split])
