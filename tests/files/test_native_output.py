import os

from lib.files.native_output import native_output_hidden


def test_standard_error_of_the_process_is_hidden_in_the_block_only(capfd):
    os.write(2, b"before ")
    with native_output_hidden():
        os.write(2, b"outer ")
        with native_output_hidden():
            os.write(2, b"inner ")
        os.write(2, b"outer ")
    os.write(2, b"after")
    assert capfd.readouterr().err == "before after"


def test_closed_standard_error_stays_closed(capfd):
    kept = os.dup(2)
    os.close(2)
    try:
        with native_output_hidden():
            pass
        assert not os.path.exists("/proc/self/fd/2")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
