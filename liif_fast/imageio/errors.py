"""The one error of image files."""

# Why it does not reduce; here, since the command line says so before torch is loaded.
WHY_NOT_SMALLER = "the model interpolates without a low-pass filter, so it would alias; use an ordinary resize"


class ImageFileError(ValueError):
    """An image file cannot be read or written; the message is one line that names the file and the reason."""


def reason(error: BaseException) -> str:
    """One line, with the system's words for an OSError instead of its errno and path."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__
