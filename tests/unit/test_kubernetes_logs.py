"""What a node sends as a pod's log is the log, or its words for having none any more."""

from __future__ import annotations

import pytest

from controller.backends.kubernetes.logs import PodLogTail

FIRST = "sandbox 11111111-2222-3333-4444-555555555555 1"
PATH = "/var/log/pods/sandboxes_sandbox-x_475ce80d-226d-4f9e-aac6-1cf12c544fd3/sandbox/0.log"
GONE = [  # as kubelets send them, with status 200 and no line end
    f'failed to try resolving symlinks in path "{PATH}": lstat {PATH}: no such file or directory',
    f'failed to open log file "{PATH}": open {PATH}: no such file or directory',
    "unable to retrieve container logs for containerd://3cb37bf366406d345269a9104cdd6b01c47c49dadb6767cbbccb07de0654eaa",
]


def fed(text: str, limit: int = 1024) -> PodLogTail:
    tail = PodLogTail(limit, FIRST)
    for at in range(0, len(text), 7):
        tail.feed(text[at : at + 7].encode())
    return tail


@pytest.mark.parametrize("words", GONE)
def test_the_nodes_words_for_a_log_that_is_gone_are_no_output(words: str) -> None:
    assert fed(words).is_kubelet_error()


@pytest.mark.parametrize("words", GONE)
def test_the_same_words_of_a_command_are_its_output(words: str) -> None:
    tail = fed(f"{FIRST}\n{words}")
    assert not tail.is_kubelet_error()
    assert tail.output().tail == words.encode()


@pytest.mark.parametrize("text", ["", "the end of a rotated log\n", f"hello\n{GONE[0]}\n"])
def test_a_log_without_its_beginning_is_told_as_truncated(text: str) -> None:
    tail = fed(text)
    assert not tail.is_kubelet_error()
    assert tail.output().tail == text.encode()
    assert tail.output().truncated
