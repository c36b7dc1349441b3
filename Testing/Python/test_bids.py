"""What of a folder is taken for a dataset laid out by BIDS, and what of it for a scan."""

import pytest

from MedFusionLib.cohort import find_subjects


@pytest.fixture
def found(tmp_path):
    """found(file, ...) -> {subject: {file: modality}} of a folder that holds these files."""

    def find(*files):
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()
        return {
            subject.name: {path.relative_to(tmp_path).as_posix(): modality for path, modality in subject.sources}
            for subject in find_subjects(tmp_path)
        }

    return find


@pytest.mark.parametrize("name", ("1.dcm", "scan.nii.gz", "sub-01_ct.nrrd"))
def test_folders_of_series_are_no_bids_for_their_names(found, name):
    files = [f"sub-0{n}/{kind}/{name}" for n in (1, 2) for kind in ("ct", "pet")]
    assert found(*files) == {f"sub-0{n}": {f"sub-0{n}/ct": None, f"sub-0{n}/pet": None} for n in (1, 2)}


def test_scans_right_in_the_folder_of_a_subject_are_no_bids(found):
    assert found("sub-01/ct.nii.gz", "sub-01/pet.nii.gz") == {
        "sub-01": {"sub-01/ct.nii.gz": None, "sub-01/pet.nii.gz": None}
    }


def test_names_as_people_write_them(found):
    """With dots in them, in capitals, with spaces; what macOS and editors leave beside them is none."""
    scans = {
        "sub-0 1/anat/sub-0 1_acq-1.5T_T1w.nii.gz": "MR",
        "sub-0 1/ct/sub-0 1_CT.NII.GZ": "CT",
        "sub-0 1/pet/sub-0 1_pet.nii": "PT",
    }
    beside = ("anat/._sub-0 1_T1w.nii.gz", "anat/sub-0 1_T1w.nii.gz.part", "anat/sub-0 1_mod-T1w_defacemask.nii.gz")
    assert found(*scans, *(f"sub-0 1/{name}" for name in beside)) == {"sub-0 1": scans}


def test_a_ct_among_the_anatomical_scans_is_a_ct(found):
    scans = {"sub-1/ses-a/anat/sub-1_ses-a_T1w.nii": "MR", "sub-1/ses-a/anat/sub-1_ses-a_acq-post_ct.nii": "CT"}
    assert found(*scans) == {"sub-1_ses-a": scans}
