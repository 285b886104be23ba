"""Work that is split over processes, as `torchrun` starts them; a process on its own is a single rank.

All ranks call the functions of this module in the same order. An error or a `Stop` on one rank ends the
others too, the next time they do something `together`.
"""

import atexit
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, distributed, nn

from lib.runtime.errors import OtherRankError, RunError
from lib.runtime.signals import Stop

T = TypeVar("T")

# For a rank that has more to do than the others. One that is killed breaks the connection at once.
_LONGEST_WAIT = timedelta(days=7)

# What a rank sends to the others: nothing, the number of the signal that stops all, or that it failed.
_GOES_ON, _FAILED = 0, 1000

_exit_status = 1  # of this process; 1 if an error ends it with a traceback


@contextmanager
def joined_ranks() -> Iterator[None]:
    """Join the processes that `torchrun` started, if it started this one; leave them at the end.

    Raises
    ------
    RunError
        If the connection to another rank breaks, as it does when that one is killed.
    """
    if not distributed.is_torchelastic_launched():
        yield
        return
    atexit.register(_skip_teardown)  # runs after all that the script registers, as the last comes first
    if torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_LONGEST_WAIT)
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, distributed.DistError) or "gloo" in str(error):
            raise RunError(f"rank {rank()} lost the connection to another one") from error
        raise
    finally:
        distributed.destroy_process_group()


def end_process(status: int) -> NoReturn:
    """End this process with an exit status, in place of `sys.exit`."""
    global _exit_status
    _exit_status = status
    sys.exit(status)


def _skip_teardown() -> None:
    """End a rank without the teardown of its interpreter.

    Threads of gloo outlive the process group of a data-parallel model. One that releases a tensor during the
    teardown would abort the process.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_exit_status)


def rank() -> int:
    """Number of this process among all, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def n_ranks() -> int:
    """Number of processes that share the work."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def local_rank() -> int:
    """Number of this process among those on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_first_rank() -> bool:
    """Return True on rank 0, which writes files and logs."""
    return rank() == 0


def together(function: Callable[[], T]) -> T:
    """Call a function on every rank; return its result on this rank once all are done.

    Raises
    ------
    Stop
        If the function raised it on any rank, and no other error on another.
    OtherRankError
        If the function raised an error on other ranks only. On a rank with an error, that one is raised.
    """
    if n_ranks() == 1:
        return function()
    value, error, status = None, None, _GOES_ON
    try:
        value = function()
    except Stop as stop:
        status = stop.number
    except BaseException as caught:
        error = caught
        status = _FAILED
    verdict = torch.tensor(status)
    distributed.all_reduce(verdict, distributed.ReduceOp.MAX)
    if error is not None:
        raise error
    if verdict == _FAILED:
        raise OtherRankError
    if verdict != _GOES_ON:
        raise Stop(int(verdict))
    return value


def gather(function: Callable[[], T]) -> list[T]:
    """Call a function on every rank; return the results of all ranks. Raises as `together`."""
    value = together(function)
    if n_ranks() == 1:
        return [value]
    values: list[Any] = [None] * n_ranks()
    distributed.all_gather_object(values, value)
    return values


def on_first_rank(function: Callable[[], T]) -> T:
    """Call a function on rank 0 only; return its result on all ranks. Raises as `together`."""
    return gather(lambda: function() if is_first_rank() else None)[0]


def mean_over_ranks(values: Tensor) -> Tensor:
    """Mean of a floating-point tensor, whose shape is the same on all ranks."""
    if n_ranks() == 1:
        return values
    total = values.clone()
    distributed.all_reduce(total)
    return total / n_ranks()


def data_parallel(model: nn.Module) -> nn.Module:
    """Wrap a model so that its gradients are the means over the ranks.

    On CUDA, batch norm takes its statistics over the batches of all ranks; on the CPU, where PyTorch has no
    such layer, over the batch of each rank, and the running statistics are those of the first.
    """
    if n_ranks() == 1:
        return model
    if next(model.parameters()).device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)


def synchronize(model: nn.Module) -> None:
    """Give all ranks the weights and statistics that the model has on the first."""
    if n_ranks() > 1:
        for value in model.state_dict().values():
            distributed.broadcast(value, 0)
