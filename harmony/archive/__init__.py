"""What has been received: objects as Part 10 files on disk (`harmony.archive.files`)."""

from harmony.archive.files import Disposition, FileSink, FileStore, Journal, StoredObject

__all__ = ["Disposition", "FileSink", "FileStore", "Journal", "StoredObject"]
