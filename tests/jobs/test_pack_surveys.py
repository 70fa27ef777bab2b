"""Real survey images are packed by one command each, as the documentation has them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits as astropy_fits
from astropy.wcs import WCS as AstropyWCS

from deeplense.data import verifying
from deeplense.data.dataset import Split
from launch.__main__ import main

fits: Any = astropy_fits
WCS: Any = AstropyWCS


def packed(output: Path, *words: str) -> Split:
    """Pack into one split, verify, and open it."""
    assert main(["pack", *words, f"--output={output}"]) == 0
    assert verifying.verify(output) == []
    return Split(output / "train")


def test_a_euclid_lens_is_packed_from_the_extensions_of_one_file(tmp_path: Path, public_data: Path) -> None:
    (path,) = (public_data / "euclid_lens").glob("*.fits")
    words = ["--layout=files", f"--source={path}", "--bands=VIS_BGSUB,NIR_Y_BGSUB"]
    split = packed(tmp_path / "out", *words)
    with fits.open(path) as file:
        for band, image in zip(split.schema.bands, split.images(np.arange(1))[0], strict=True):
            np.testing.assert_array_equal(image, file[band].data)
            assert split.column(f"column/zero_point_{band}")[0] == file[band].header["MAGZERO"]
        header = file["VIS_BGSUB"].header.copy()
    for key in ("PC1_1", "PC2_2", "CDELT1", "CDELT2"):
        del header[key]  # The file has both matrices, and astropy complains.
    centre = WCS(header).pixel_to_world(49.5, 49.5)
    assert split.column("column/ra")[0] == pytest.approx(centre.ra.deg, abs=1e-8)
    assert split.column("column/dec")[0] == pytest.approx(centre.dec.deg, abs=1e-8)
    assert split.schema.pixel_scale_arcsec == pytest.approx(0.1, rel=1e-6)


def test_hosts_of_des_are_packed_from_a_cube_for_each_band_with_their_velocity_dispersions(
    tmp_path: Path, public_data: Path
) -> None:
    folder, target = public_data / "des_hosts", "CONFIGURATION_2-PLANE_1-OBJECT_1-MASS_PROFILE_1-sigma_v-g"
    words = ["--layout=cubes", f"--source={folder}", "--bands=g,r,i,z,Y", f"--catalog={folder / 'map.txt'}"]
    split = packed(tmp_path / "out", *words, "--join=order", f"--targets={target}:km/s", "--pixel_scale=0.263")
    assert (split.schema.shape, split.schema.bands) == ((5, 91, 91), ("g", "r", "i", "z", "Y"))
    sigma = np.loadtxt(folder / "map.txt", skiprows=1)[:, 0]
    for name, image, value in zip(
        split.ids, split.images(np.arange(46)), split.column(f"target/{target}"), strict=True
    ):
        row = int(name.rpartition("-")[2])
        assert value == sigma[row]
        for band, pixels in zip(split.schema.bands, image, strict=True):
            np.testing.assert_array_equal(pixels, fits.getdata(folder / f"{band}.fits")[row])


def test_lenses_of_pan_starrs_keep_their_positions(tmp_path: Path, public_data: Path) -> None:
    folder = public_data / "ps1_lenses"
    words = ["--layout=npz", f"--source={folder / 'ps1_gri_80x80.npz'}", f"--catalog={folder / 'catalog.csv'}"]
    where = "--where=detected_gri=1,type!=lensed_supernovae"
    split = packed(
        tmp_path / "out", *words, "--label_key=type", where, "--fill_nan=0", "--keep=ra,dec,mag_r_2arcsec:mag"
    )
    assert split.manifests[0].class_counts == {"lensed_galaxies": 275, "lensed_quasars": 261}
    assert split.schema.columns == {"ra": "deg", "dec": "deg", "mag_r_2arcsec": "mag"}
    with np.load(folder / "ps1_gri_80x80.npz") as archive:
        ra = dict(zip(archive["name"].tolist(), archive["ra"].tolist(), strict=True))
    for name, value in zip(split.ids, split.column("column/ra"), strict=True):
        assert value == pytest.approx(ra[name], abs=1e-6)


def test_candidates_of_space_warps_have_classes_by_grade_and_grades_of_a_file(
    tmp_path: Path, public_data: Path
) -> None:
    source = public_data / "space_warps" / "cfhtls_gri_rgb_107x107.npz"
    words = ["--layout=npz", f"--source={source}", "--bands=i,r,g"]
    split = packed(tmp_path / "out", *words, "--classes=lens:grade>=2,other:grade<1", "--keep=grade")
    assert split.manifests[0].class_counts == {"lens": 91, "other": 251}
    with np.load(source) as archive:
        names, grades = archive["name"].tolist(), archive["grade"].tolist()
    lines = [
        f"{name},{'sure' if grade >= 2 else 'no'}" for name, grade in zip(names, grades, strict=True) if grade != 1
    ]
    (tmp_path / "grades.csv").write_text("\n".join(["id,grade", *lines]) + "\n")
    split = packed(tmp_path / "graded", *words, f"--grades={tmp_path / 'grades.csv'}")
    assert split.manifests[0].class_counts == {"no": len(lines) - 91, "sure": 91}


def test_stamps_of_ztf_are_grouped_by_object(tmp_path: Path, public_data: Path) -> None:
    words = ["--layout=npz", f"--source={public_data / 'ztf_stamps' / 'ztf_63x63.npz'}", "--group=object"]
    split = packed(tmp_path / "out", *words, "--fill_nan=0", "--keep=object")
    groups = split.groups()
    assert groups is not None
    pairs = set(zip(split.column("column/object").tolist(), groups.tolist(), strict=True))
    assert len(pairs) == len(set(groups.tolist())) == 275


def test_galaxies_of_cosmos_have_sizes_of_their_own_and_a_crop_makes_them_one(
    tmp_path: Path, public_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = public_data / "cosmos_galaxies"
    table = folder / "real_galaxy_catalog_26_extension_example.fits"
    words = ["--layout=catalogue", f"--catalog={table}", "--file_column=GAL_FILENAME", "--hdu_column=GAL_HDU"]
    words += ["--keep=RA,DEC,MAG:mag", "--pixel_scale=0.03"]
    assert main(["pack", *words, f"--output={tmp_path / 'bad'}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "of 100 images the smallest has 16 x 16" in line
    split = packed(tmp_path / "out", *words, "--crop=16")
    rows = fits.getdata(table)
    with fits.open(folder / "real_galaxy_images_extension.fits") as file:
        for name, image, magnitude in zip(
            split.ids, split.images(np.arange(100)), split.column("column/MAG"), strict=True
        ):
            number = int(name.rpartition("-")[2])
            whole = file[number].data
            top = (len(whole) - 16) // 2
            np.testing.assert_allclose(image[0], whole[top : top + 16, top : top + 16], rtol=1e-6)
            assert magnitude == rows["MAG"][rows["GAL_HDU"] == number][0]
