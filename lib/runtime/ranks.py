"""Distribution of work over the ranks that `torchrun` starts; without it, a process is a single rank.

All ranks call the functions of this module in the same order. An error or a `Stop` on one rank ends the
other ranks at their next call of `together`.
"""

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NoReturn, TypeVar

import torch
from torch import Tensor, distributed, nn

from lib.runtime.errors import OtherRankError, RunError
from lib.runtime.signals import Stop

T = TypeVar("T")

# Timeout of a rank that waits for others, which may load, save or evaluate for hours. It may be long, because
# a killed rank breaks the connection at once.
_LONGEST_WAIT = timedelta(days=7)

# Status that a rank shares. Between these two, it is the number of the signal that stops all ranks.
_OK, _FAILED = 0, 1000

_exit_status = 1  # of this process; 1 if an error ends it with a traceback


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Join the process group if `torchrun` started this process; leave it at the end.

    Raises a RunError if the connection to another rank breaks, for example because it was killed.
    """
    if not distributed.is_torchelastic_launched():
        yield
        return
    skip_teardown()  # here, to be the last handler: they run in reverse order
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise RunError(f"rank {rank()} lost the connection to another rank") from error
        raise
    finally:
        distributed.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """End this process with an exit status; replaces `sys.exit`."""
    global _exit_status
    _exit_status = status
    sys.exit(status)


def skip_teardown() -> None:
    """Let this process exit without interpreter teardown, with the status of `end_process`.

    Threads may outlive their use: of gloo, the process group of a data-parallel model; of a server, the
    server. If one computes or releases a tensor during the teardown, it aborts the process.
    """
    atexit.register(_exit_at_once)


def _exit_at_once() -> None:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_exit_status)


def rank() -> int:
    """Index of this process among all ranks, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def n_ranks() -> int:
    """Number of ranks that share the work."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rank() -> int:
    """Index of this process among the ranks on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_first_rank() -> bool:
    """Return True on rank 0, which writes files and logs."""
    return rank() == 0


def together(function: Callable[[], T]) -> T:
    """Call a function on every rank, wait for all ranks, and return the result of this rank.

    Raises
    ------
    Stop
        If the function raised it on any rank, and no rank raised another error.
    OtherRankError
        If the function failed on other ranks only. A rank on which it failed raises its own error.
    """
    if n_ranks() == 1:
        return function()
    value, error, status = None, None, _OK
    try:
        value = function()
    except Stop as stop:
        status = stop.number
    except BaseException as caught:
        error, status = caught, _FAILED
    verdict = torch.tensor(status)
    distributed.all_reduce(verdict, distributed.ReduceOp.MAX)
    if error is not None:
        raise error
    if verdict == _FAILED:
        raise OtherRankError
    if verdict != _OK:
        raise Stop(int(verdict))
    return value


def gather(function: Callable[[], T]) -> list[T]:
    """Call a function on every rank; return the results of all ranks. Raises the errors of `together`."""
    value = together(function)
    if n_ranks() == 1:
        return [value]
    values = [None] * n_ranks()
    distributed.all_gather_object(values, value)
    return values


def on_first_rank(function: Callable[[], T]) -> T:
    """Call a function on rank 0 only; return its result on all ranks. Raises the errors of `together`."""
    return gather(lambda: function() if is_first_rank() else None)[0]


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean over all ranks of a floating-point tensor, which has the same shape on each."""
    if n_ranks() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / n_ranks()


def data_parallel(model: nn.Module) -> nn.Module:
    """Wrap a model so that its gradients are means over the ranks.

    On CUDA, batch norm uses the batches of all ranks. PyTorch has no such layer for the CPU: there, each rank
    uses its own batch, and the running statistics of rank 0 are kept.
    """
    if n_ranks() == 1:
        return model
    if next(model.parameters()).device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def synchronize(model: nn.Module) -> None:
    """Copy the weights and statistics of the model from rank 0 to all ranks."""
    if n_ranks() > 1:
        for value in model.state_dict().values():
            distributed.broadcast(value, 0)
