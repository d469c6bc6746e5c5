"""Bodies of the type multipart/related (RFC 2387), in which DICOMweb sends and takes several objects at once.

    python examples/multipart.py pack BODY BOUNDARY FILE...
    python examples/multipart.py unpack BODY FOLDER

pack: writes the files to BODY, each as a part of the type application/dicom; the request then says
    Content-Type: multipart/related; type="application/dicom"; boundary=BOUNDARY
unpack: writes the parts of BODY to a new folder, as they come: 1, 2 and so on; prints how many.

Only what the demonstrations need: the boundary is read from the first line of a body, and parts of other types than
expected are not noticed.
"""

import sys
from pathlib import Path

LINE_END = b"\r\n"
HEADERS_END = LINE_END + LINE_END


def pack(body: Path, boundary: str, *files: str) -> None:
    delimiter = b"--" + boundary.encode("ascii")
    with body.open("wb") as written:
        for file in files:
            written.write(delimiter + LINE_END + b"Content-Type: application/dicom" + HEADERS_END)
            written.write(Path(file).read_bytes() + LINE_END)
        written.write(delimiter + b"--" + LINE_END)


def unpack(body: Path, folder: str) -> None:
    delimiter, _, rest = body.read_bytes().partition(LINE_END)
    # The line end before a delimiter belongs to it (RFC 2046 §5.1.1), and what follows the last one is not a part.
    *parts, end = (LINE_END + rest).split(LINE_END + delimiter)
    if not delimiter.startswith(b"--") or not end.startswith(b"--"):
        sys.exit(f"{body} is not a whole multipart body")
    Path(folder).mkdir()
    for number, part in enumerate(parts, 1):
        Path(folder, str(number)).write_bytes(part.split(HEADERS_END, 1)[1])
    print(len(parts))


def main() -> None:
    match sys.argv[1:]:
        case ["pack", body, boundary, *files] if files:
            pack(Path(body), boundary, *files)
        case ["unpack", body, folder]:
            unpack(Path(body), folder)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
