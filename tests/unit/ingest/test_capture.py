from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from common.errors import FeedProtocolError, SettingsError
from ingest.capture import CaptureFrame, merge_captures, read_capture


def line(time_ns: int, stream: str, number: int = 0) -> bytes:
    return b'%d {"stream":"%b","data":{"n":%d}}\n' % (time_ns, stream.encode(), number)


def write(path: Path, *lines: bytes, compressed: bool = False) -> Path:
    path.write_bytes(gzip.compress(b"".join(lines)) if compressed else b"".join(lines))
    return path


@pytest.mark.parametrize("compressed", [False, True])
def test_frames_come_out_byte_for_byte_with_the_time_since_the_files_start(tmp_path: Path, compressed: bool) -> None:
    path = write(tmp_path / "c", line(1_000, "a@trade", 1), line(1_500, "b@trade", 2), compressed=compressed)
    assert list(read_capture(path)) == [
        CaptureFrame(0, "a@trade", b'{"stream":"a@trade","data":{"n":1}}'),
        CaptureFrame(500, "b@trade", b'{"stream":"b@trade","data":{"n":2}}'),
    ]


def test_lines_that_hold_no_stream_frame_are_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "c", b'5 {"lastUpdateId":1,"bids":[]}\n', b"\n", b"6 [1]\n", line(9, "a@trade"))
    assert [(frame.elapsed_ns, frame.stream) for frame in read_capture(path)] == [(4, "a@trade")]


def test_several_captures_are_merged_by_the_time_since_each_ones_own_start(tmp_path: Path) -> None:
    early = write(tmp_path / "a", line(1_000, "a@trade", 0), line(1_010, "a@trade", 1), line(1_030, "a@trade", 2))
    late = write(tmp_path / "b", line(9_000, "b@trade", 0), line(9_020, "b@trade", 1))
    merged = [(frame.elapsed_ns, frame.stream) for frame in merge_captures([early, late])]
    assert merged == [(0, "a@trade"), (0, "b@trade"), (10, "a@trade"), (20, "b@trade"), (30, "a@trade")]


@pytest.mark.parametrize(
    "bad", [b"hello\n", b"12x {}\n", b"5\n", b"5 {\n", b"5 \xff\n", b"-5 {}\n", b"5 {}extra\n", b"9" * 30 + b" {}\n"]
)
def test_a_malformed_line_is_named_by_file_and_number_behind_the_good_ones(tmp_path: Path, bad: bytes) -> None:
    path = write(tmp_path / "c", line(1, "a@trade"), line(2, "a@trade"), bad, line(3, "a@trade"))
    frames = read_capture(path)
    assert [next(frames).elapsed_ns, next(frames).elapsed_ns] == [0, 1]
    with pytest.raises(FeedProtocolError, match=f"line 3 of the capture {path} is malformed"):
        next(frames)


def test_a_file_that_does_not_exist_is_a_settings_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"nowhere\.gz cannot be read"):
        list(read_capture(tmp_path / "nowhere.gz"))


def test_a_folder_is_no_capture(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        list(read_capture(tmp_path))


def test_an_empty_file_is_no_capture(tmp_path: Path) -> None:
    with pytest.raises(FeedProtocolError, match="is empty"):
        list(read_capture(write(tmp_path / "c")))


def test_a_truncated_gzip_is_damaged_and_gives_what_it_has_first(tmp_path: Path) -> None:
    whole = gzip.compress(b"".join(line(n, "a@trade", n) for n in range(5_000)))
    path = tmp_path / "c.gz"
    path.write_bytes(whole[: len(whole) // 2])
    got: list[CaptureFrame] = []
    with pytest.raises(FeedProtocolError, match="damaged behind line"):
        got.extend(read_capture(path))
    assert len(got) > 1_000
    assert [frame.elapsed_ns for frame in got] == list(range(len(got)))


def test_a_gzip_with_a_wrong_checksum_is_damaged(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(line(1, "a@trade")))
    whole[-8] ^= 0xFF
    path = tmp_path / "c.gz"
    path.write_bytes(whole)
    with pytest.raises(FeedProtocolError, match="damaged"):
        list(read_capture(path))
