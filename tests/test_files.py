import errno
import os

import pytest

from liif_fast.files import atomic_file, distinct_names, is_litter


def test_what_cannot_be_written_is_named_as_it_was_given(tmp_path):
    """The message names neither the temporary file nor, with a full disk, no file at all."""
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as full, atomic_file(path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    missing = tmp_path / "missing" / "a.bin"
    with pytest.raises(FileNotFoundError) as nowhere, atomic_file(missing):
        pass
    assert (full.value.filename, nowhere.value.filename) == (str(path), str(missing))
    with pytest.raises(OSError, match="the camera") as other, atomic_file(path):
        raise OSError(errno.EIO, "the camera")
    assert other.value.filename is None
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.skipif(os.name == "nt", reason="no permissions of files here")
@pytest.mark.parametrize(
    ("before", "mode", "after"), [(0o600, None, 0o600), (0o666, 0o640, 0o640), (None, None, 0o622)]
)
def test_the_part_lets_nobody_in_whom_the_file_keeps_out(before, mode, after, tmp_path):
    path = tmp_path / "a.bin"
    if before is not None:
        path.touch()
        path.chmod(before)
    umask = os.umask(0o044)
    try:
        with atomic_file(path, mode):
            [part] = [each for each in tmp_path.iterdir() if each != path]
            assert not part.stat().st_mode & 0o777 & ~after
    finally:
        os.umask(umask)
    assert path.stat().st_mode & 0o777 == after


def test_short_names_of_files():
    assert distinct_names(["x/a.pth", "b.pth"]) == ["a", "b"]
    assert distinct_names(["x/a.pth", "y/a.pth"]) == ["x-a", "y-a"]
    assert distinct_names(["x/a.pth", "x/a.safetensors"]) == ["a.pth", "a.safetensors"]
    assert distinct_names(["A.jpg", "a.png"]) == ["A.jpg", "a.png"]  # also where a file system takes A for a
    assert distinct_names([]) == []


def test_names_are_different_whatever_the_paths():
    for paths in (["x/y-a.png", "x-y/a.png"], ["a.png", "a.png"], ["a.png", "A.png"], ["/a.png", "./a.png"]):
        assert len({name.casefold() for name in distinct_names(paths)}) == len(paths)


def test_what_systems_leave_behind():
    assert all(map(is_litter, (".DS_Store", "._a.jpg", "Thumbs.db", "thumbs.db", "@eaDir", "Desktop.ini", "__MACOSX")))
    assert not any(map(is_litter, ("a.png", "thumbs", "eaDir", "notes.txt")))
